//! While there is no key: who is let in on a loopback address, as browsers, proxies and programs send it.

use serde_json::json;

use super::{PROBE, created, probe};
use crate::{
    gateway::jobs,
    harness::{
        counted::counted,
        http::Http,
        process::Installation,
        wait::until_equal,
        wire::{Answer, address, raw},
    },
};

/// A job as it stands on the wire, with these headers.
async fn sent(gateway: &str, headers: &[&str]) -> Answer {
    let headers = headers.join("\r\n");
    let request = format!("POST {PROBE} HTTP/1.1\r\n{headers}\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{{}}");
    raw(gateway, request.as_bytes()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_website_or_a_proxy_sends_is_refused_and_what_programs_and_our_own_page_send_is_taken() {
    let installation = Installation::embedded("");
    let up = installation.up(&[]);
    let own = address(up.gateway()).to_owned();
    let port = own.rsplit_once(':').unwrap().1.to_owned();
    let host = format!("host: {own}");
    let refused: [(&[&str], &str); 15] = [
        // A page of another site, as browsers tell of it: a form, a fetch without a preflight, an image, a sandbox, a file.
        (&[&host, "origin: https://evil.example", "sec-fetch-site: cross-site"], "cross_site"),
        (&[&host, "origin: https://evil.example"], "cross_site"),
        (&[&host, "sec-fetch-site: cross-site", "sec-fetch-mode: no-cors"], "cross_site"),
        (&[&host, "Sec-Fetch-Site: Cross-Site"], "cross_site"),
        (&[&host, "origin: null", "content-type: text/plain"], "cross_site"),
        (&[&host, &format!("origin: http://127.0.0.1:{port}1")], "cross_site"),
        (&[&host, &format!("origin: http://localhost:{port}")], "cross_site"),
        (&["origin: http://localhost"], "cross_site"),
        // A name of someone else's that he points here: to the browser it is the same site.
        (&[&format!("host: evil.example:{port}"), "sec-fetch-site: same-origin"], "cross_site"),
        (&[&format!("host: evil.example:{port}"), &format!("origin: http://evil.example:{port}")], "cross_site"),
        (&[&format!("host: localhost.evil.example:{port}")], "cross_site"),
        (&[&host, "host: evil.example"], "cross_site"),
        // A proxy that lets others through.
        (&[&host, "x-forwarded-for: 203.0.113.7"], "through_a_proxy"),
        (&[&host, "forwarded: for=203.0.113.7"], "through_a_proxy"),
        (&[&host, "x-forwarded-host: jobs.example", "x-real-ip: 203.0.113.7"], "through_a_proxy"),
    ];
    for (headers, code) in refused {
        let answer = sent(up.gateway(), headers).await;
        assert_eq!((answer.status(), answer.json()["code"].as_str()), (403, Some(code)), "{headers:?}");
        assert!(answer.json()["detail"].as_str().unwrap().contains("warren key create"), "{answer:?}");
    }
    // The first line may name another than Host does.
    let absolute = format!("POST http://evil.example{PROBE} HTTP/1.1\r\n{host}\r\ncontent-length: 2\r\n");
    let answer = raw(up.gateway(), format!("{absolute}connection: close\r\n\r\n{{}}").as_bytes()).await;
    assert_eq!((answer.status(), answer.json()["code"].as_str()), (403, Some("cross_site")), "{answer:?}");
    // The same for what is read, called off, and sent in other protocols.
    for request in
        ["GET /v1/jobs/x", "DELETE /v1/jobs/x", "POST /v1/jobs", "POST /v1/events", "POST /v1/batch", "POST /batch/"]
    {
        let head = format!("{request} HTTP/1.1\r\n{host}\r\norigin: https://evil.example\r\n");
        let text = format!(
            "{head}content-type: text/plain\r\ncontent-length: 12\r\nconnection: close\r\n\r\n{{\"batch\":[]}}"
        );
        let answer = raw(up.gateway(), text.as_bytes()).await;
        assert_eq!((answer.status(), answer.json()["code"].as_str()), (403, Some("cross_site")), "{request}");
    }
    assert_eq!(jobs(&installation).len(), 0, "nothing was taken");
    let taken: [&[&str]; 8] = [
        &[&host],
        &[&format!("host: localhost:{port}")],
        &[&format!("host: LOCALHOST:{port}"), &format!("origin: http://localhost:{port}")],
        &[&format!("host: [::1]:{port}")],
        // A tunnel has a port of its own.
        &["host: localhost:9999"],
        // Swagger UI, from here.
        &[&host, &format!("origin: http://{own}"), "sec-fetch-site: same-origin"],
        // Typed into a browser.
        &[&host, "sec-fetch-site: none"],
        // No browser leaves it away.
        &["user-agent: old"],
    ];
    for headers in taken {
        let answer = sent(up.gateway(), headers).await;
        assert_eq!(answer.status(), 202, "{headers:?}: {answer:?}");
    }
    until_equal("what was taken is done", taken.len(), async || jobs(&installation).len()).await;
    // What holds nothing of anyone is shown to everyone.
    let docs = raw(up.gateway(), b"GET /docs HTTP/1.1\r\nhost: evil.example\r\nconnection: close\r\n\r\n").await;
    assert_eq!(docs.status(), 200, "{docs:?}");
    assert!(counted(&up, ("warren_auth_refused_total", &[("reason", "cross_site")])).await > 0);
    // With a key it is the key that counts.
    let key = created(&installation, "shop", &[]);
    until_equal("a key is needed", 401, async || probe(&Http::to(up.gateway())).await.status().as_u16()).await;
    let bearer = format!("authorization: Bearer {key}");
    for headers in [["host: jobs.example", "x-forwarded-for: 203.0.113.7"], [&host, "origin: https://shop.example"]] {
        assert_eq!(sent(up.gateway(), &[headers[0], headers[1], &bearer]).await.status(), 202, "{headers:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_probe_of_readiness_is_no_refused_key() {
    let installation = Installation::embedded("");
    let up = installation.up_for_others(&[]);
    let admin = Http::to(&up.admin);
    for _ in 0..3 {
        let ready = admin.get("/readyz").send().await.unwrap();
        assert!(!ready.text().await.unwrap().contains("parts"));
    }
    let scrape = created(&installation, "prometheus", &["--scope", "metrics:read"]);
    let scraper = Http::with_key(&up.admin, &scrape);
    until_equal("the key is known", 200, async || scraper.get("/metrics").send().await.unwrap().status().as_u16())
        .await;
    // What brings a key that is not good is counted there as anywhere.
    let wrong = admin.get("/readyz").bearer_auth("wrong").send().await.unwrap();
    assert_eq!(wrong.json::<serde_json::Value>().await.unwrap().get("parts"), None);
    let metrics = scraper.get("/metrics").send().await.unwrap().text().await.unwrap();
    assert!(!metrics.contains("warren_auth_refused_total{reason=\"missing_key\"}"), "{metrics}");
    assert!(metrics.contains("warren_auth_refused_total{reason=\"malformed_key\"} 1"), "{metrics}");
    let ready = scraper.get("/readyz").send().await.unwrap().json::<serde_json::Value>().await.unwrap();
    assert!(ready["parts"]["database"] != json!(null), "{ready}");
}
