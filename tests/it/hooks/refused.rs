//! Webhooks that are not good, and configurations that are not.

use serde_json::{Value, json};

use super::{
    open, received,
    signer::{Hook, STANDARD, STRIPE, Signer, TOKEN, TWILIO, seconds_from_now, sources},
};
use crate::{
    gateway::jobs,
    harness::{
        http::{Http, parts},
        process::{Installation, Said},
    },
};

/// The status, the code, and everything that was said.
async fn refused(http: &Http, hook: &Hook) -> (u16, String, Value) {
    let response = hook.request(http).send().await.unwrap();
    assert_eq!(response.headers()["content-type"], "application/problem+json", "{hook:?}");
    let (status, answer) = parts(response).await;
    (status, answer["code"].as_str().unwrap().to_owned(), answer)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_signed_by_who_it_says_is_refused_counted_and_nothing_else() {
    let Some(mut signer) = Signer::start() else { return };
    let (installation, up, http) = open();
    let now = seconds_from_now(0);
    let canary = "{\"type\":\"a\",\"canary\":\"within-a-body\"}";
    let standard = Hook::standard(&mut signer, "standard-webhooks", STANDARD, "msg_1", now, canary);
    let stripe = Hook::stripe(&mut signer, STRIPE, now, canary);
    let github = Hook::github(&mut signer, "push", "d-1", canary);
    let twilio = Hook::twilio(&mut signer, "", &[("MessageSid", "SM1"), ("SmsStatus", "received"), ("Body", "canary")]);
    let signature = |hook: &Hook, name: &str| hook.headers.iter().find(|(known, _)| known == name).unwrap().1.clone();
    let (of_standard, of_stripe) = (signature(&standard, "webhook-signature"), signature(&stripe, "stripe-signature"));
    let (of_github, of_twilio) = (signature(&github, "x-hub-signature-256"), signature(&twilio, "x-twilio-signature"));
    let mut bad = vec![
        standard.clone().without("webhook-signature"),
        standard.clone().without("webhook-id"),
        standard.clone().without("webhook-timestamp"),
        standard.clone().instead("webhook-id", "msg_2"),
        standard.clone().instead("webhook-id", "msg.1"),
        standard.clone().instead("webhook-timestamp", &(now + 1).to_string()),
        standard.clone().instead("webhook-signature", &of_standard.replace("v1,", "v1a,")),
        standard.clone().instead("webhook-signature", &of_standard.replace("v1,", "")),
        stripe.clone().without("stripe-signature"),
        stripe.clone().instead("stripe-signature", &of_stripe.replace("v1=", "v0=")),
        stripe.clone().instead("stripe-signature", of_stripe.split_once(',').unwrap().1),
        stripe.clone().instead("stripe-signature", &of_stripe.replace(&format!("t={now}"), &format!("t={}", now + 1))),
        github.clone().without("x-hub-signature-256"),
        github.clone().instead("x-hub-signature-256", &of_github[7..]),
        twilio.clone().without("x-twilio-signature"),
        Hook { path: format!("{}?a=1", twilio.path), ..twilio.clone() },
        twilio.clone().instead("x-twilio-signature", "AAAAAAAAAAAAAAAAAAAAAAAAAAA="),
        Hook::bearer(b"{}").without("authorization"),
        Hook::bearer(b"{}").instead("authorization", &format!("Bearer {}", &TOKEN[..TOKEN.len() - 1])),
        Hook::bearer(b"{}").instead("authorization", &format!("Basic {TOKEN}")),
        // A good one, of someone else.
        Hook { path: "/v1/hooks/github".into(), ..standard.clone() },
        Hook { path: "/v1/hooks/shop".into(), ..github.clone() },
    ];
    // One byte of the body is another, there is one more, and there is one less.
    for hook in [&standard, &stripe, &github, &twilio] {
        let last = hook.body.len() - 1;
        let mut changed = hook.body.clone();
        changed[last] ^= 1;
        for body in [changed, [hook.body.as_slice(), b" "].concat(), hook.body[..last].to_vec(), Vec::new()] {
            bad.push(Hook { body, ..hook.clone() });
        }
    }
    let secrets = [STANDARD, STRIPE, TOKEN, &of_standard[3..], &of_github[7..], &of_twilio, "within-a-body"];
    for hook in &bad {
        let (status, code, answer) = refused(&http, hook).await;
        assert_eq!((status, code.as_str()), (401, "bad_signature"), "{hook:?} {answer}");
        for secret in secrets {
            assert!(!answer.to_string().contains(secret), "{answer}");
        }
    }
    for away in [-360, 360] {
        for hook in [
            Hook::standard(&mut signer, "standard-webhooks", STANDARD, "msg_3", now + away, canary),
            Hook::standard(&mut signer, "svix", STANDARD, "msg_3", now + away, canary),
            Hook::stripe(&mut signer, STRIPE, now + away, canary),
        ] {
            let (status, code, answer) = refused(&http, &hook).await;
            assert_eq!((status, code.as_str()), (401, "stale_timestamp"), "{answer}");
            let detail = answer["detail"].as_str().unwrap();
            let (_, time) = detail.split_once("this server's time is ").expect("it tells its time");
            let seconds: i64 = time.split(' ').next().unwrap().parse().unwrap();
            assert!((now..now + 60).contains(&seconds), "{detail}");
        }
    }
    for text in ["soon", "-1", "1.5", "99999999999999999999"] {
        let (status, code, answer) = refused(&http, &standard.clone().instead("webhook-timestamp", text)).await;
        assert_eq!((status, code.as_str()), (401, "stale_timestamp"), "{answer}");
        let header = of_stripe.replace(&format!("t={now}"), &format!("t={text}"));
        let (_, code, _) = refused(&http, &stripe.clone().instead("stripe-signature", &header)).await;
        assert_eq!(code, "stale_timestamp");
    }
    let of =
        |source: &str| bad.iter().filter(|hook| hook.path.split('?').next().unwrap().ends_with(source)).count() as u64;
    for source in ["shop", "pay", "github", "phone", "other"] {
        assert_eq!(received(&up, source, "bad_signature").await, of(source), "{source}");
        assert_eq!(received(&up, source, "accepted").await, 0, "{source}");
    }
    assert_eq!(received(&up, "shop", "stale_timestamp").await, 8);
    assert_eq!(received(&up, "pay", "stale_timestamp").await, 6);
    assert_eq!(jobs(&installation), Vec::<Value>::new(), "nothing was taken");
    let logs = installation.logs();
    assert!(logs.contains("a webhook was refused"), "what is logged at all is looked at");
    for secret in secrets.iter().chain([&of_stripe.split_once("v1=").unwrap().1, &"canary"]) {
        assert!(!logs.contains(secret), "{secret} is logged");
    }
    // And as they are, all of them are good.
    for hook in [&standard, &stripe, &github, &twilio] {
        assert!(hook.request(&http).send().await.unwrap().status().is_success(), "{hook:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn four_minutes_either_way_are_within_the_tolerance_and_another_can_be_set() {
    let Some(mut signer) = Signer::start() else { return };
    let (installation, up, http) = open();
    for (id, away) in [("msg_a", -240), ("msg_b", 240)] {
        let hook = Hook::standard(&mut signer, "svix", STANDARD, id, seconds_from_now(away), "{}");
        assert_eq!(hook.request(&http).send().await.unwrap().status(), 202);
    }
    drop(up);
    installation.configure(&format!(
        "[source.shop]\nscheme = 'standard-webhooks'\nsecrets = ['{STANDARD}']\ntolerance = '3m'\n"
    ));
    let up = installation.up(&[]);
    let http = Http::to(up.gateway());
    for (away, status) in [(-240, 401), (-120, 202), (120, 202), (240, 401)] {
        let id = format!("msg_{away}");
        let hook = Hook::standard(&mut signer, "svix", STANDARD, &id, seconds_from_now(away), "{}");
        assert_eq!(hook.request(&http).send().await.unwrap().status(), status, "{away} s");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_is_not_configured_and_a_body_that_cannot_be_one_are_told_so() {
    let (installation, up, http) = open();
    let post = async |path: &str| {
        let (status, answer) = parts(http.post(path).body("{}").send().await.unwrap()).await;
        (status, answer["code"].as_str().unwrap().to_owned(), answer["detail"].as_str().unwrap().to_owned())
    };
    // Which sources there are is the operator's to know, and not anyone's who asks.
    let (_, code, detail) = post("/v1/hooks/githbu").await;
    assert_eq!((code.as_str(), detail.contains("github")), ("unknown_source", false), "{detail}");
    let logs = installation.logs();
    let line = logs.lines().find(|line| line.contains("not configured")).expect("it is logged");
    assert!(line.contains("github") && !line.contains("githbu"), "{line}");
    for path in [
        "/v1/hooks/githbu",
        "/v1/hooks/zzz",
        "/v1/hooks/..%2fgithub",
        "/v1/hooks/github%00",
        "/v1/hooks/GitHub",
        "/v1/hooks/%0a",
    ] {
        let (status, code, detail) = post(path).await;
        assert_eq!((status, code.as_str()), (404, "unknown_source"), "{path}");
        assert!(!detail.chars().any(char::is_control), "{detail:?}");
    }
    let (_, _, detail) = post(&format!("/v1/hooks/{}", "x".repeat(5000))).await;
    assert!(detail.len() < 300, "{detail}");
    for path in ["/v1/hooks", "/v1/hooks/", "/v1/hooks/github/"] {
        assert_eq!(post(path).await.1, "not_found", "{path}");
    }
    let get = http.get("/v1/hooks/github").send().await.unwrap();
    assert_eq!((get.status().as_u16(), get.headers()["allow"].to_str().unwrap()), (405, "POST"));
    let packed = Hook::bearer(b"\x1f\x8b").with("content-encoding", "gzip");
    let (status, code, _) = refused(&http, &packed).await;
    assert_eq!((status, code.as_str()), (415, "unsupported_encoding"));
    let (status, code, _) = refused(&http, &Hook::bearer(&vec![b'x'; (1 << 20) + 1])).await;
    assert_eq!((status, code.as_str()), (413, "too_large"));
    assert_eq!(received(&up, "other", "unreadable").await, 2);
    let logs = installation.logs();
    let unread: Vec<_> = logs.lines().filter(|line| line.contains("could not be read")).collect();
    assert!(unread.len() == 2 && unread[1].contains("too_large") && unread[1].contains("other"), "{unread:?}");
    assert_eq!(jobs(&installation), Vec::<Value>::new(), "nothing was taken");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_good_webhook_that_becomes_no_job_is_counted_and_logged_for_its_sender_does_not_send_it_again() {
    let Some(mut signer) = Signer::start() else { return };
    let routes = "[events]\nunrouted = 'refuse'\n\
                  [route.out]\ntype = 'github.push'\nkind = 'webhook.deliver'\n\
                  with = { url = '{{data.url}}', event_type = '{{data.type}}', event_id = '{{id}}' }\n";
    let installation = Installation::embedded(&(sources() + routes));
    let up = installation.up(&[]);
    let http = Http::to(up.gateway());
    let body = json!({ "url": "canary-in-a-url", "name": "canary-in-a-hook" }).to_string();
    for (event, delivery, expected) in [("push", "delivery-1", "route_failed"), ("fork", "delivery-2", "no_route")] {
        let (status, code, _) = refused(&http, &Hook::github(&mut signer, event, delivery, &body)).await;
        assert_eq!((status, code.as_str()), (422, expected));
        let logs = installation.logs();
        let line = logs.lines().find(|line| line.contains(delivery)).expect("it is logged by its id");
        assert!(line.contains("WARN") && line.contains(expected) && line.contains("github"), "{line}");
    }
    assert_eq!((received(&up, "github", "refused").await, received(&up, "github", "not_taken").await), (2, 0));
    // Nothing was taken, so the same webhook is no repeat.
    let again = Hook::github(&mut signer, "fork", "delivery-2", &body);
    assert_eq!(refused(&http, &again).await.1, "no_route");
    assert_eq!(jobs(&installation), Vec::<Value>::new(), "nothing was taken");
}

fn check(installation: &Installation) -> Said {
    installation.run(&["config", "check"])
}

#[test]
fn every_mistake_in_a_source_is_told_and_no_secret_is() {
    let installation = Installation::embedded(
        r#"
            [source.a]
            secrets = ["hunter2"]
            [source.b]
            scheme = "standard-webhooks"
            secrets = ["hunter2", "whsec_hunter2!", "whsec_aHVudGVyMg=="]
            tolerance = "2h"
            [source.c]
            scheme = "hunter3"
            tenant = "A B"
            [source.d]
            scheme = "twilio"
            secrets = []
            [source.e]
            scheme = "twilio"
            secrets = ["x"]
            url = "https://u:hunter2@example.com/x"
            [source.f]
            scheme = "twilio"
            secrets = ["x"]
            url = "https://example.com/x?y=1"
            [source.g]
            scheme = "bearer"
            secrets = ["hunter2"]
            url = "https://example.com"
            [source.h]
            scheme = "stripe"
            secrets_file = "/no/such/file"
            [source."i.j"]
            scheme = "github-sha256"
            secrets = [" hunter2"]
            colour = "red"
        "#,
    );
    let Said { code, stdout, stderr } = check(&installation);
    let said = format!("{stdout}{stderr}");
    assert_eq!(code, 2, "{said}");
    assert!(!said.contains("hunter2"), "{said}");
    let expected = json!([
        ["source.a.scheme", "is missing: standard-webhooks, github-sha256, stripe, twilio or bearer"],
        ["source.b.secrets", "secret 1: a secret of this scheme begins with whsec_"],
        ["source.b.secrets", "secret 2: what follows whsec_ is not base64"],
        ["source.b.secrets", "secret 3: a secret of this scheme holds 24 to 64 bytes, this one holds 7"],
        ["source.b.tolerance", "must be from 1s to 1h"],
        ["source.c.scheme", "must be standard-webhooks, github-sha256, stripe, twilio or bearer"],
        ["source.c.secrets", "is missing: a list"],
        ["source.c.tenant", "a tenant is 1 to 64"],
        ["source.d.secrets", "names no usable secret"],
        ["source.d.url", "is missing: the address that Twilio calls and signs"],
        ["source.e.url", "must hold no user and no password"],
        ["source.f.url", "must end before the ?"],
        ["source.g.secrets", "secret 1: a token is 16 or more visible ASCII characters"],
        ["source.g.url", "only the scheme twilio signs an address"],
        ["source.h.secrets_file", "/no/such/file cannot be read"],
        ["source.i.j", "the name of a source is 1 to 40 of the characters"],
        ["source.i.j.secrets", "secret 1: a secret is not empty, and no space stands before or behind it"],
        ["source.i.j.colour", "there is no such setting"],
    ]);
    for mistake in expected.as_array().unwrap() {
        let (setting, problem) = (mistake[0].as_str().unwrap(), mistake[1].as_str().unwrap());
        let line = said.lines().find(|line| line.contains(&format!("{setting} (")) && line.contains(problem));
        assert!(line.is_some(), "{setting}: {problem} is not in\n{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_may_stand_in_a_file_and_a_url_only_where_it_is_signed() {
    let installation = Installation::embedded("");
    let file = installation.folder.path().join("secrets");
    std::fs::write(&file, format!("{TWILIO}-and-more-of-it\n\n  {TOKEN}  \n")).unwrap();
    installation
        .configure(&format!("[source.other]\nscheme = 'bearer'\nsecrets_file = '{}'\n", file.to_str().unwrap()));
    assert_eq!(check(&installation).code, 0);
    let up = installation.up(&[]);
    let hook = Hook::bearer(b"{}");
    let status = hook.request(&Http::to(up.gateway())).send().await.unwrap().status();
    assert_eq!(status, 202, "the second line is a token too");
}
