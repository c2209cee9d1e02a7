//! What a gateway allows those who connect to it, and its certificate.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};

use super::{
    Mistake,
    layers::{Layers, shown_file},
};

/// What a gateway allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// How many connections, over all.
    pub connections: u32,
    /// How many from one address.
    pub per_address: u32,
    /// How many requests may be under way.
    pub requests: u32,
    /// With TLS, and from which files.
    pub tls: Option<TlsFiles>,
}

/// The files that TLS needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate and those between it and a root, in PEM.
    pub certificate: PathBuf,
    /// Its private key, in PEM.
    pub key: PathBuf,
}

const CERTIFICATE: &str = "gateway.tls.certificate";
const KEY: &str = "gateway.tls.key";

pub(super) fn read(layers: &mut Layers) -> Limits {
    let mut number = |name| layers.integer(&["gateway", name], 1..=1_000_000).unwrap_or(1);
    let (connections, per_address) = (number("max_connections"), number("max_connections_per_address"));
    let requests = number("max_requests");
    Limits { connections, per_address, requests, tls: tls(layers) }
}

fn tls(layers: &mut Layers) -> Option<TlsFiles> {
    let mut file = |name| layers.text(&["gateway", "tls", name]);
    match (file("certificate"), file("key")) {
        (Some((certificate, _)), Some((key, _))) => Some(TlsFiles { certificate: certificate.into(), key: key.into() }),
        (None, None) => None,
        (Some((_, origin)), None) => {
            layers.mistake(&origin, KEY, "there is a certificate but no key: TLS needs both, as PEM files");
            None
        }
        (None, Some((_, origin))) => {
            layers.mistake(&origin, CERTIFICATE, "there is a key but no certificate: TLS needs both, as PEM files");
            None
        }
    }
}

impl TlsFiles {
    /// Reads the files, or tells everything that is wrong with them, and nothing that stands in them.
    pub fn load(&self) -> Result<Arc<ServerConfig>, Vec<Mistake>> {
        let mut mistakes = Vec::new();
        let mut wrong = |setting: &str, file: &Path, problem: String| {
            let origin = shown_file(&file.to_string_lossy()).to_owned();
            mistakes.push(Mistake { origin, setting: setting.into(), problem });
        };
        let chain = certificates(&self.certificate).map_err(|problem| wrong(CERTIFICATE, &self.certificate, problem));
        let key = private_key(&self.key).map_err(|problem| wrong(KEY, &self.key, problem));
        if let (Ok(chain), Ok(key)) = (chain, key) {
            match server(chain, key) {
                Ok(config) => return Ok(Arc::new(config)),
                Err(rustls::Error::InconsistentKeys(_)) => {
                    wrong(KEY, &self.key, "is not the key of the certificate".into());
                }
                // Its words name what is wrong and quote nothing of a key.
                Err(error) => wrong(CERTIFICATE, &self.certificate, format!("cannot be used: {error}")),
            }
        }
        Err(mistakes)
    }

    /// Tells one state of the files from another.
    pub fn digest(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        for file in [&self.certificate, &self.key] {
            // What cannot be read is a state of its own.
            hasher.update(blake3::hash(&fs::read(file).unwrap_or_default()).as_bytes());
        }
        hasher.finalize().into()
    }
}

fn bytes(file: &Path) -> Result<Vec<u8>, String> {
    fs::read(file).map_err(|error| format!("cannot be read: {error}"))
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let bytes = bytes(file)?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match chain {
        Ok(chain) if !chain.is_empty() => Ok(chain),
        _ => Err("holds no certificate in PEM (-----BEGIN CERTIFICATE-----)".into()),
    }
}

fn private_key(file: &Path) -> Result<PrivateKeyDer<'static>, String> {
    PrivateKeyDer::from_pem_slice(&bytes(file)?)
        .map_err(|_| "holds no private key in PEM (`BEGIN PRIVATE KEY`), or one under a password".into())
}

fn server(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Result<ServerConfig, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}
