//! Destinations that are not there, are not ours, or don't want the guest.

use std::io::{Read, Write};

use migrated_api::{MigrationRecord, MigrationState};
use migrated_testkit::require;
use serde_json::{Value, json};

use crate::guest::{Workload, assert_runs_only};
use crate::host::Host;
use crate::lab::{ADDRESSES, Lab, make_certs};

const GUEST: Workload<'_> =
    Workload { name: "g", vcpus: 1, memory_mib: 32, parameters: "hot=4M rate=5000 content=random" };

/// Begins a migration that must fail, checks that the guest has not noticed, and gives the error.
#[track_caller]
fn fails(lab: &Lab, request: &Value) -> (String, String, MigrationRecord) {
    let record = lab.a.await_end(&lab.a.migrate("g", request).id);
    assert_eq!(record.state, Some(MigrationState::Failed), "{record:#?}");
    let error = record.error.clone().unwrap();
    let early = [MigrationState::Negotiating, MigrationState::Preflight];
    assert!(error.phase.is_some_and(|phase| early.contains(&phase)), "{error:?}");
    assert_eq!((record.ram.pages_sent, record.downtime_us.total), (0, 0.0), "{record:#?}");
    runs_at_source(&lab.a, &lab.b);
    lab.await_tidy();
    (error.code, error.message, record)
}

#[track_caller]
fn runs_at_source(a: &Host, b: &Host) {
    let elsewhere = b.vms().into_iter().filter(|vm| vm.id == a.vm("g").id).count();
    assert_eq!(elsewhere, 0);
    assert_eq!(a.vm("g").migration, None);
}

#[test]
fn a_destination_that_cannot_be_reached_is_named() {
    require!(Kvm, Netns);
    let lab = Lab::with(
        &format!(
            "[peers.wrong-token]\nurl = \"http://{}:7000\"\ntoken_file = \"{{root}}/wrong-token\"\n",
            ADDRESSES[1]
        ),
        "",
    );
    GUEST.create(&lab.a);
    assert_eq!(
        lab.a.api.post("/v1/vms/g/migrations", &json!({ "to": "nowhere" })).problem(),
        (422, "peer_unknown".into())
    );
    let (code, detail) = lab.a.cli_refused(&["migrate", "g", "--to", "nowhere"]);
    assert!(code == "peer_unknown" && detail.contains("[peers.nowhere]"), "{detail}");

    // Nobody has the address; nobody listens at the port.
    for to in ["http://10.77.0.99:7000", "http://10.77.0.2:7009"] {
        let (code, message, _) = fails(&lab, &json!({ "to": to }));
        assert!(code == "peer_unreachable" && message.contains(to), "{code}: {message}");
    }
    // Something else listens there, and talks, or hangs up, or is another kind of server.
    let babble: [&[u8]; 3] =
        [b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello", b"", b"220 ftp ready\r\n"];
    for reply in babble {
        let listener = lab.b.netns.enter(|| std::net::TcpListener::bind((ADDRESSES[1], 7010)).unwrap());
        let server = std::thread::spawn(move || {
            for _ in 0..2 {
                // The second caller takes back what the first one asked for.
                let (mut stream, _) = listener.accept().unwrap();
                let _ = stream.read(&mut [0; 4096]);
                let _ = stream.write_all(reply);
            }
        });
        let (code, message, _) = fails(&lab, &json!({ "to": "http://10.77.0.2:7010" }));
        assert!(code == "peer_not_migrated" && message.contains("7010"), "{code}: {message}");
        server.join().unwrap();
    }
    for to in ["wrong-token", "http://10.77.0.2:7000"] {
        let (code, message, _) = fails(&lab, &json!({ "to": to }));
        assert!(code == "peer_unauthorized" && message.contains("token_file"), "{code}: {message}");
    }
    assert_runs_only("g", &lab.a, &lab.b);
}

#[test]
fn a_destination_with_another_authority_is_not_trusted() {
    require!(Kvm, Netns);
    let mut lab = Lab::new();
    let certs = lab.root.path().join("certs");
    std::fs::rename(&certs, lab.root.path().join("first")).unwrap();
    make_certs(&certs);
    // `a` reads its files when a migration begins; `b` goes on with the first authority's.
    let config = lab.root.path().join("b/host.toml");
    let text = std::fs::read_to_string(&config).unwrap().replace("/certs/", "/first/");
    std::fs::write(config, text).unwrap();
    lab.b.kill_daemon();
    lab.b.start_daemon();
    GUEST.create(&lab.a);
    let (code, message, _) = fails(&lab, &json!({ "to": "b", "transport": "tcp+tls" }));
    assert!(code == "peer_unreachable" && message.contains("certificate"), "{code}: {message}");
    // Its daemon is trusted still, and so is plain TCP.
    let record = lab.a.await_end(&lab.a.migrate("g", &json!({ "to": "b", "transport": "tcp" })).id);
    assert_eq!(record.state, Some(MigrationState::Completed), "{record:#?}");
    assert_runs_only("g", &lab.b, &lab.a);
}

#[test]
fn admission_refuses_with_all_reasons() {
    require!(Kvm, Netns);
    let lab = Lab::with("", "[guests]\nmemory_limit_bytes = 50331648\n");
    GUEST.create(&lab.a);
    Workload { name: "big", memory_mib: 64, ..GUEST }.create(&lab.a);
    let record = lab.a.await_end(&lab.a.migrate("big", &json!({ "to": "b" })).id);
    let error = record.error.unwrap();
    assert_eq!(error.code, "admission_refused");
    assert!(error.message.contains("memory_limit_bytes"), "{}", error.message);

    let twin = GUEST.create(&lab.b);
    assert_eq!(lab.b.api.post("/v1/vms", &GUEST.spec()).problem(), (409, "vm_name_taken".into()));
    let (code, message, _) = fails(&lab, &json!({ "to": "b" }));
    // Name and room, both are told.
    assert_eq!(code, "admission_refused");
    assert!(message.contains("named \"g\"") && message.contains("memory_limit_bytes"), "{message}");
    lab.b.cli(&["vm", "delete", &twin.id]);
    let record = lab.a.await_end(&lab.a.migrate("g", &json!({ "to": "b" })).id);
    assert_eq!(record.state, Some(MigrationState::Completed), "{record:#?}");

    lab.b.await_end(&record.id);
    lab.b.cli(&["vm", "delete", "g"]);
    for host in [&lab.a, &lab.b] {
        assert_eq!(host.cli_refused(&["migrate", "g", "--to", "a"]).0, "vm_not_found");
    }
}

#[test]
fn requests_that_mean_nothing_are_refused_before_anything_is_done() {
    require!(Kvm, Netns);
    let lab = Lab::new();
    GUEST.create(&lab.a);
    let post = |body: Value| lab.a.api.post("/v1/vms/g/migrations", &body).problem();
    for (key, value) in [
        ("max_downtime_ms", json!(0)),
        ("max_downtime_ms", json!(-1)),
        ("bandwidth_bps", json!(0)),
        ("channels", json!(0)),
        ("channels", json!(65)),
        ("timeout_s", json!(1e9)),
        ("max_iterations", json!(0)),
    ] {
        assert_eq!(post(json!({ "to": "b", key: value })), (422, "invalid_request".into()), "{key}");
    }
    for body in [json!({ "to": "b", "max_downtime": 5 }), json!({}), json!({ "to": 5 }), json!([])] {
        let (status, code) = post(body.clone());
        assert!((400..500).contains(&status) && !code.is_empty(), "{body}: {status} {code}");
    }
    assert!(lab.a.migrations().is_empty() && lab.b.migrations().is_empty());
    assert_runs_only("g", &lab.a, &lab.b);
}
