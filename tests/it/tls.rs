//! A gateway that speaks TLS itself, and a broker that does.

use std::{path::PathBuf, sync::Arc};

use http::{StatusCode, Version};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{CertifiedKey, generate_simple_self_signed};
use reqwest::{Certificate, Client};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use serde_json::{Value, json};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::harness::{
    counted::{ENDED, until_counted},
    http::{Http, parts},
    process::{Installation, Up, said},
    wait::until,
    wire::{connect, raw},
};

/// A certificate for this machine and its key, in PEM.
fn pair() -> (String, String) {
    let CertifiedKey { cert, signing_key } =
        generate_simple_self_signed(vec!["localhost".into(), "127.0.0.1".into()]).unwrap();
    (cert.pem(), signing_key.serialize_pem())
}

struct Files {
    certificate: PathBuf,
    key: PathBuf,
}

impl Files {
    fn of(installation: &Installation) -> Self {
        let file = |name| installation.folder.path().join(name);
        let this = Self { certificate: file("cert.pem"), key: file("key.pem") };
        let (certificate, key) = (this.certificate.display(), this.key.display());
        installation.configure(&format!("[gateway.tls]\ncertificate = \"{certificate}\"\nkey = \"{key}\"\n"));
        this
    }

    fn write(&self, (certificate, key): &(String, String)) {
        std::fs::write(&self.certificate, certificate).unwrap();
        std::fs::write(&self.key, key).unwrap();
    }
}

/// A client that trusts one certificate and makes a new connection for every request.
fn trusting(pair: &(String, String)) -> Client {
    let root = Certificate::from_pem(pair.0.as_bytes()).unwrap();
    Client::builder().no_proxy().tls_certs_only([root]).pool_max_idle_per_host(0).build().unwrap()
}

async fn index(client: &Client, up: &Up) -> Result<Value, reqwest::Error> {
    client.get(format!("{}/", up.gateway())).send().await?.json().await
}

/// Asks for a page that is not there over HTTP/2, if that is agreed on.
async fn over_http2(pair: &(String, String), up: &Up) -> (Version, StatusCode) {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(pair.0.as_bytes()).unwrap()).unwrap();
    let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let name = "localhost".try_into().unwrap();
    let stream = TlsConnector::from(Arc::new(config)).connect(name, connect(up).await).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(b"h2".as_slice()));
    let (mut requests, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = http::Request::get("https://localhost/nowhere").body(String::new()).unwrap();
    let response = requests.send_request(request).await.unwrap();
    (response.version(), response.status())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_with_a_certificate_speaks_tls_and_nothing_else() {
    let installation = Installation::embedded("");
    let files = Files::of(&installation);
    let pair = pair();
    files.write(&pair);
    let up = installation.up(&[]);
    assert!(up.gateway().starts_with("https://"), "{}", up.gateway());
    let client = trusting(&pair);
    assert_eq!(index(&client, &up).await.unwrap()["service"], "warren");
    let request = client.post(format!("{}/v1/jobs/warren.probe", up.gateway())).json(&json!({}));
    assert_eq!(parts(request.send().await.unwrap()).await.0, 202);
    let (version, status) = over_http2(&pair, &up).await;
    assert_eq!((version, status.as_u16()), (Version::HTTP_2, 404));
    assert!(Client::builder().no_proxy().build().unwrap().get(up.gateway()).send().await.is_err(), "nobody knows it");
    // Plain HTTP is told so, and is closed.
    let answer = raw(up.gateway(), b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert_eq!((answer.status(), answer.json()["code"].as_str()), (400, Some("tls_required")));
    assert!(answer.json()["detail"].as_str().unwrap().contains("https://"));
    // So is what begins like TLS and is none.
    assert!(!raw(up.gateway(), b"\x16nonsense\r\n\r\n").await.text.contains("HTTP"));
    assert!(index(&trusting(&pair), &up).await.is_ok());
    assert!(!installation.logs().contains("PRIVATE KEY"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_sends_a_key_over_tls_or_not_at_all() {
    let installation = Installation::embedded("");
    let files = Files::of(&installation);
    files.write(&pair());
    let up = installation.up(&[]);
    let port = up.gateway().rsplit_once(':').unwrap().1.to_owned();
    // Nobody may hear of the key but who has the certificate: this one hears everything that is sent.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let clear = listener.local_addr().unwrap();
    let key = "wrn_live_0123456789AB_canary-key";
    let run = |arguments: &[&str]| {
        let trusted = files.certificate.as_os_str();
        said(installation.command(arguments).env("WARREN_KEY", key).env("SSL_CERT_FILE", trusted))
    };
    let settings = std::fs::read_to_string(installation.file()).unwrap();
    std::fs::write(installation.file(), format!("[gateway]\nlisten = \"{clear}\"\n{settings}")).unwrap();
    for verb in [&["probe"][..], &["job", "enqueue", "warren.probe"]] {
        let unnamed = run(verb);
        assert_eq!(unnamed.code, 2, "{unnamed:?}");
        assert!(unnamed.stderr.contains(&format!("--gateway https://NAME:{}", clear.port())), "{unnamed:?}");
        let plain = run(&[verb, &["--gateway", &format!("http://{clear}")]].concat());
        assert!(plain.code == 2 && plain.stderr.contains("https://"), "{plain:?}");
        assert!(listener.accept().is_err(), "nobody has come");
        let named = run(&[verb, &["--gateway", &format!("https://localhost:{port}")]].concat());
        assert_eq!(named.code, 0, "{named:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_certificate_is_taken_into_use_and_a_bad_one_is_not() {
    let installation = Installation::embedded("");
    let files = Files::of(&installation);
    let (first, second, third) = (pair(), pair(), pair());
    files.write(&first);
    let up = installation.up(&[]);
    let admin = Http::to(&up.admin);
    let state = async || parts(admin.get("/readyz").send().await.unwrap()).await;
    index(&trusting(&first), &up).await.unwrap();
    files.write(&second);
    until("the second is in use", async || index(&trusting(&second), &up).await.ok()).await;
    assert!(index(&trusting(&first), &up).await.is_err());
    // The certificate of one and the key of another: the second stays, and it is said.
    files.write(&(third.0.clone(), first.1.clone()));
    let (status, ready) = until("it is said", async || {
        Some(state().await).filter(|(_, ready)| ready["parts"]["tls"]["state"] == "warning")
    })
    .await;
    assert_eq!((status, ready["ready"].as_bool()), (200, Some(true)));
    assert!(ready["parts"]["tls"]["detail"].as_str().unwrap().contains("is not the key of the certificate"), "{ready}");
    index(&trusting(&second), &up).await.unwrap();
    until("the log says so", async || installation.logs().contains("the one before it stays in use").then_some(()))
        .await;
    std::fs::remove_file(&files.certificate).unwrap();
    until("it is gone, and that is said", async || {
        let ready = state().await.1;
        ready["parts"]["tls"]["detail"].as_str().is_some_and(|detail| detail.contains("cannot be read")).then_some(())
    })
    .await;
    index(&trusting(&second), &up).await.unwrap();
    files.write(&third);
    until("the third is in use", async || index(&trusting(&third), &up).await.ok()).await;
    until("all is well", async || (state().await.1["parts"]["tls"]["state"] == "ready").then_some(())).await;
    let logs = installation.logs();
    assert!(
        [first, second, third].iter().all(|(_, key)| !key.lines().any(|line| logs.contains(line))),
        "a key is logged"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_cannot_be_used_are_all_reported_at_the_start() {
    let installation = Installation::embedded("");
    let files = Files::of(&installation);
    let (first, second) = (pair(), pair());
    let start = || {
        let said = installation.run(&["up", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]);
        assert_eq!(said.code, 2, "{said:?}");
        assert_eq!(installation.run(&["config", "check"]).stderr, said.stderr);
        let body = second.1.lines().nth(1).unwrap();
        assert!(!said.stderr.contains(body) && !said.stderr.contains("PRIVATE KEY-----\n"), "{said:?}");
        said.stderr
    };
    let nothing = start();
    for setting in ["gateway.tls.certificate", "gateway.tls.key"] {
        assert!(nothing.lines().any(|line| line.contains(setting) && line.contains("cannot be read")), "{nothing}");
    }
    files.write(&(second.1.clone(), first.0.clone()));
    let swapped = start();
    assert!(swapped.contains("holds no certificate") && swapped.contains("holds no private key"), "{swapped}");
    files.write(&(first.0, second.1.clone()));
    assert!(start().contains("gateway.tls.key") && start().contains("is not the key of the certificate"));
    installation.configure("[gateway.tls]\nkey = 'x.pem'\n[gateway]\nmax_requests = 0\n");
    let half = start();
    assert!(half.contains("there is a key but no certificate") && half.contains("gateway.max_requests"), "{half}");
}

/// TLS before a server that speaks none itself. Answers the port.
async fn before(server: String, (certificate, key): &(String, String)) -> u16 {
    let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap())
        .unwrap();
    let (acceptor, listener) = (TlsAcceptor::from(Arc::new(config)), TcpListener::bind("127.0.0.1:0").await.unwrap());
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let (acceptor, server) = (acceptor.clone(), server.clone());
            tokio::spawn(async move {
                let mut client = acceptor.accept(client).await?;
                copy_bidirectional(&mut client, &mut TcpStream::connect(server).await?).await
            });
        }
    });
    port
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_speaks_tls_is_used_by_who_trusts_its_certificate_and_by_nobody_else() {
    let Some(installation) = Installation::on_servers("").await else { return };
    let (rabbit, _) = installation.servers().unwrap();
    let pair = pair();
    let port = before(rabbit.address(), &pair).await;
    let trusted = installation.folder.path().join("broker.pem");
    std::fs::write(&trusted, &pair.0).unwrap();
    let settings = std::fs::read_to_string(installation.file()).unwrap();
    let over_tls = rabbit.through(port).replacen("amqp://", "amqps://", 1);
    std::fs::write(installation.file(), settings.replace(&rabbit.url, &over_tls)).unwrap();
    let distrusting = installation.run(&["topology", "apply"]);
    assert_eq!(distrusting.code, 4, "{distrusting:?}");
    assert!(distrusting.stderr.contains("certificate"), "{distrusting:?}");
    let up = installation.up_with(&[], &[("SSL_CERT_FILE", trusted.to_str().unwrap())]);
    let http = Http::to(up.gateway());
    let jobs = vec![json!({ "kind": "warren.probe", "body": { "payload_bytes": 100 } }); 500];
    let answer: Value = http.post("/v1/jobs").json(&jobs).send().await.unwrap().json().await.unwrap();
    assert_eq!(answer["accepted"], 500, "{answer}");
    until_counted(&up, ENDED, 500, async |_| {}).await;
}
