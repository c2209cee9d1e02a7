//! Where a webhook may go.

use std::{
    collections::VecDeque,
    future::ready,
    io,
    net::IpAddr,
    pin::Pin,
    sync::{Arc, Mutex},
};

use url::Url;
use warren_workers::webhook::guard::{Guard, Lookup, Refused, Rules, is_private};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap_or_else(|_| panic!("{text}"))
}

/// Both ends of every block that the special-purpose registries of IANA (RFC 6890 and its updates) list as not globally
/// reachable, and the nearest addresses outside of it that are.
#[test]
fn the_special_purpose_registries_are_private_to_their_last_address() {
    let blocks = [
        ("0.0.0.0", "0.255.255.255", "1.0.0.0"),
        ("10.0.0.0", "10.255.255.255", "11.0.0.0"),
        ("100.64.0.0", "100.127.255.255", "100.128.0.0"),
        ("127.0.0.0", "127.255.255.255", "128.0.0.0"),
        ("169.254.0.0", "169.254.255.255", "169.255.0.0"),
        ("172.16.0.0", "172.31.255.255", "172.32.0.0"),
        ("192.0.0.0", "192.0.0.255", "192.0.1.0"),
        ("192.0.2.0", "192.0.2.255", "192.0.3.0"),
        ("192.88.99.0", "192.88.99.255", "192.88.100.0"),
        ("192.168.0.0", "192.168.255.255", "192.169.0.0"),
        ("198.18.0.0", "198.19.255.255", "198.20.0.0"),
        ("198.51.100.0", "198.51.100.255", "198.51.101.0"),
        ("203.0.113.0", "203.0.113.255", "203.0.114.0"),
        ("2001:db8::", "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff", "2001:db9::"),
        ("2001::", "2001:1ff:ffff:ffff:ffff:ffff:ffff:ffff", "2001:200::"),
        ("3fff::", "3fff:fff:ffff:ffff:ffff:ffff:ffff:ffff", "3fff:1000::"),
    ];
    for (first, last, outside) in blocks {
        assert!(is_private(ip(first)), "{first}");
        assert!(is_private(ip(last)), "{last}");
        assert!(!is_private(ip(outside)), "{outside}");
    }
    let others = [
        "224.0.0.1",
        "239.255.255.255",
        "240.0.0.0",
        "255.255.255.255",
        "168.63.129.16",
        "::",
        "::1",
        "::7f00:1",
        "fc00::1",
        "fdff::1",
        "fd00:ec2::254",
        "fe80::1",
        "fec0::1",
        "ff02::1",
        "100::1",
        "5f00::1",
        "64:ff9b:1::1",
    ];
    for address in others {
        assert!(is_private(ip(address)), "{address}");
    }
    for address in ["8.8.8.8", "100.63.255.255", "172.15.255.255", "223.255.255.255", "2606:4700::1111", "2a00::1"] {
        assert!(!is_private(ip(address)), "{address}");
    }
}

#[test]
fn an_ipv4_address_within_an_ipv6_one_is_judged_as_itself() {
    for address in
        ["::ffff:10.0.0.1", "::ffff:127.0.0.1", "64:ff9b::169.254.169.254", "2002:7f00:1::", "2002:c0a8:101::1"]
    {
        assert!(is_private(ip(address)), "{address}");
    }
    for address in ["::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "2002:808:808::1"] {
        assert!(!is_private(ip(address)), "{address}");
    }
}

fn rules(private: &[&str]) -> Rules {
    Rules { allow_private: private.iter().map(|net| net.parse().expect("a network")).collect(), ..Rules::default() }
}

fn check(rules: Rules, url: &str) -> Result<(), Refused> {
    Guard::new(rules).check(&Url::parse(url).unwrap_or_else(|_| panic!("{url}")))
}

#[test]
fn a_private_address_is_known_however_it_is_written() {
    for url in [
        "https://127.0.0.1/",
        "https://0x7f.1/",
        "https://2130706433/",
        "https://0177.0.0.1/",
        "https://127.1/",
        "https://[::1]/",
        "https://[::ffff:10.0.0.1]/",
        "https://169.254.169.254/latest/meta-data",
        "https://10.1.2.3./",
    ] {
        assert!(matches!(check(Rules::default(), url), Err(Refused::Literal(_))), "{url}");
    }
}

#[test]
fn a_name_of_this_machine_is_private_whatever_a_resolver_says() {
    for name in ["localhost", "localhost.", "LOCALHOST", "a.localhost", "a.b.localhost."] {
        let refused = check(Rules::default(), &format!("https://{name}/")).unwrap_err();
        assert_eq!(refused, Refused::Loopback(name.to_ascii_lowercase()), "{name}");
        for allowed in ["127.0.0.1/32", "::1/128"] {
            assert_eq!(check(rules(&[allowed]), &format!("https://{name}/")), Ok(()), "{name} {allowed}");
        }
    }
    assert_eq!(check(Rules::default(), "https://localhost.example.com/"), Ok(()));
    assert_eq!(check(Rules::default(), "https://notlocalhost/"), Ok(()));
}

#[test]
fn only_tls_and_usual_ports_unless_the_operator_says_so() {
    assert_eq!(check(Rules::default(), "https://example.com/"), Ok(()));
    assert_eq!(check(Rules::default(), "http://example.com/"), Err(Refused::Insecure));
    assert_eq!(check(Rules::default(), "https://example.com:8443/"), Err(Refused::Port(8443)));
    assert_eq!(check(Rules { allow_http: true, ..Rules::default() }, "http://example.com/"), Ok(()));
    assert_eq!(check(Rules { allow_ports: vec![8443], ..Rules::default() }, "https://example.com:8443/"), Ok(()));
}

#[test]
fn an_allowed_network_is_allowed_and_its_neighbour_is_not() {
    assert_eq!(check(rules(&["127.0.0.1/32"]), "http://127.0.0.1:9999/x"), Ok(()));
    assert_eq!(check(rules(&["127.0.0.1/32"]), "http://127.0.0.2:9999/x"), Err(Refused::Literal(ip("127.0.0.2"))));
    assert_eq!(check(rules(&["10.0.0.0/8"]), "http://[::ffff:10.0.0.1]:9999/x"), Ok(()));
}

/// Answers each look-up with the next of these.
struct Answers(Mutex<VecDeque<Vec<IpAddr>>>);

impl Lookup for Answers {
    fn lookup(&self, name: String) -> Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send>> {
        let answer = self.0.lock().expect("no panic").pop_front();
        Box::pin(ready(answer.ok_or_else(|| io::Error::other(format!("no more answers for {name}")))))
    }
}

/// A guard whose names resolve to these, look-up by look-up.
pub(crate) fn resolving(rules: Rules, answers: &[&[&str]]) -> Guard {
    let answers = answers.iter().map(|answer| answer.iter().map(|address| ip(address)).collect()).collect();
    Guard::with_lookup(rules, Arc::new(Answers(Mutex::new(answers))))
}
