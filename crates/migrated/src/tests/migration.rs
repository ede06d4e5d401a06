//! Migrations between two daemons.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;

use migrated_api::{
    MigrationList, MigrationRecord, MigrationState, Mode, RecordRole, StartedMigration, Vm, VmList, VmState,
};
use migrated_wire::PROTOCOL;
use serde_json::{Value, json};

use super::cpus;
use super::fake_vm::description;
use super::host::{Host, four_vcpus, problem, spec};
use crate::cli::watch_migration;

const ENDED: &[MigrationState] =
    &[MigrationState::Completed, MigrationState::Failed, MigrationState::Cancelled];

fn start(host: &Host, request: &Value) -> Result<MigrationRecord, crate::client::ApiClientError> {
    host.post("/v1/vms/web/migrations", request)
}

#[test]
fn a_vm_goes_there_and_back_and_keeps_its_id() {
    let (a, b) = (Host::new("a"), Host::new("b"));
    let vm = a.create("web", "").unwrap();
    for (from, to) in [(&a, &b), (&b, &a)] {
        let begun = from.migrate("web", to);
        assert_eq!(begun.state, Some(MigrationState::Negotiating));
        let ended = from.wait(&begun.id, ENDED);
        assert_eq!((ended.state, ended.error), (Some(MigrationState::Completed), None));
        let arrived = to.wait(&begun.id, ENDED);
        assert_eq!((arrived.state, arrived.role), (Some(MigrationState::Completed), RecordRole::Destination));
        let there = to.vm("web").unwrap();
        assert_eq!((&there.id, there.state, there.migration), (&vm.id, VmState::Running, None));
        assert_eq!(problem(from.vm("web")).code, "vm_not_found");
    }
    assert_eq!(a.get::<VmList>("/v1/vms").unwrap().vms.len(), 1);
    b.wait_until_forgotten(&vm.id);
    assert_eq!(a.get::<MigrationList>("/v1/migrations").unwrap().migrations.len(), 2);
    let metrics = a.call(a.daemon.as_ref().unwrap().render_metrics());
    assert!(
        metrics
            .contains("migrated_migrations_total{role=\"source\",mode=\"auto\",outcome=\"completed\"} 1\n"),
        "{metrics}"
    );
}

#[test]
fn whoever_starts_a_migration_is_told_what_it_risks() {
    let (a, b) = (Host::new("a"), Host::new("b"));
    let to = format!("unix:{}", b.config.api.socket.display());
    let cases = [
        (json!({}), true),
        (json!({ "mode": "hybrid" }), true),
        (json!({ "mode": "precopy" }), false),
        (json!({ "allow_postcopy": false }), false),
        (json!({ "verify": "before" }), false),
    ];
    for (n, (more, risky)) in cases.into_iter().enumerate() {
        a.create(&format!("vm{n}"), "").unwrap();
        let mut request = more.clone();
        request["to"] = json!(to);
        let path = format!("/v1/vms/vm{n}/migrations");
        let begun: StartedMigration = a.post(&path, &request).unwrap();
        assert_eq!(begun.risk.is_some_and(|risk| risk.contains("depends on both hosts")), risky, "{more}");
        a.wait(&begun.record.id, ENDED);
    }
}

#[test]
fn events_go_on_to_the_end() {
    let (a, b) = (Host::new("a"), Host::new("b"));
    a.create("web", "").unwrap();
    let begun = a.migrate("web", &b);
    let ended = a.call(watch_migration(&a.client, &begun.id)).unwrap();
    assert_eq!(ended, a.record(&begun.id));
    assert_eq!(ended.state, Some(MigrationState::Completed));
    // After the end there is one event: the end.
    assert_eq!(a.call(watch_migration(&a.client, &begun.id)).unwrap(), ended);
}

#[test]
fn a_vm_in_a_migration_is_left_alone_until_that_is_cancelled() {
    let (a, b) = (Host::new("a"), Host::new("b"));
    let vm = a.create("web", "endless").unwrap();
    let begun = a.migrate("web", &b);
    a.wait(&begun.id, &[MigrationState::Precopy]);
    b.wait(&begun.id, &[MigrationState::Receiving]);
    assert_eq!(a.vm("web").unwrap().migration, Some(begun.id.clone()));
    assert_eq!(b.get::<VmList>("/v1/vms").unwrap().vms, []);
    let again = problem(start(&a, &json!({ "to": "unix:/x" })));
    assert_eq!((again.status, again.code.as_str()), (409, "migration_in_progress"));
    assert_eq!(problem(a.post::<Value>("/v1/vms/web/pause", &())).code, "migration_in_progress");
    assert_eq!(problem(a.call(a.client.delete("/v1/vms/web")).map(|()| 0)).code, "migration_in_progress");

    let _: MigrationRecord = a.post(&format!("/v1/migrations/{}/cancel", begun.id), &()).unwrap();
    assert_eq!(a.wait(&begun.id, ENDED).state, Some(MigrationState::Cancelled));
    assert_eq!(b.wait(&begun.id, ENDED).state, Some(MigrationState::Failed));
    b.wait_until_forgotten(&vm.id);
    a.assert_state("web", VmState::Running);
    let too_late = problem(a.post::<Value>(&format!("/v1/migrations/{}/cancel", begun.id), &()));
    assert_eq!((too_late.status, too_late.code.as_str()), (409, "migration_not_cancellable"));
    a.call(a.client.delete("/v1/vms/web")).unwrap();
}

#[test]
fn a_lost_ack_is_resolved_and_only_the_destination_runs() {
    let (a, b) = (Host::new("a"), Host::new("b"));
    let vm = a.create("web", "lose-ack").unwrap();
    let begun = a.migrate("web", &b);
    assert_eq!(a.wait(&begun.id, ENDED).state, Some(MigrationState::Completed));
    b.assert_state("web", VmState::Running);
    a.wait_until_forgotten(&vm.id);
}

#[test]
fn a_lost_commit_is_resolved_and_only_the_source_runs() {
    let (a, b) = (Host::new("a"), Host::new("b"));
    let vm = a.create("web", "lose-commit").unwrap();
    let begun = a.migrate("web", &b);
    let ended = a.wait(&begun.id, ENDED);
    assert_eq!(
        (ended.state, ended.error.unwrap().code.as_str()),
        (Some(MigrationState::Failed), "link_lost")
    );
    a.assert_state("web", VmState::Running);
    b.wait_until_forgotten(&vm.id);
}

#[test]
fn a_source_that_dies_after_its_commit_has_migrated() {
    let (a, b) = (Host::new("a"), Host::new("b"));
    let vm = a.create("web", "die-in-switchover").unwrap();
    let begun = a.migrate("web", &b);
    assert_eq!(a.wait(&begun.id, ENDED).state, Some(MigrationState::Completed));
    b.assert_state("web", VmState::Running);
    a.wait_until_forgotten(&vm.id);
}

#[test]
fn a_vm_process_that_dies_before_the_commit_ends_the_migration() {
    let (a, b) = (Host::new("a"), Host::new("b"));
    let vm = a.create("web", "endless").unwrap();
    let begun = a.migrate("web", &b);
    a.wait(&begun.id, &[MigrationState::Precopy]);
    a.kill_vm("web");
    let ended = a.wait(&begun.id, ENDED);
    let error = ended.error.unwrap();
    assert_eq!((error.code.as_str(), error.phase), ("vm_process_died", Some(MigrationState::Precopy)));
    assert!(error.message.contains("SIGKILL"), "{}", error.message);
    b.wait_until_forgotten(&vm.id);
    a.assert_state("web", VmState::Failed);
    assert_eq!(b.wait(&begun.id, ENDED).state, Some(MigrationState::Failed));
}

#[test]
fn a_destination_that_cant_be_asked_fails_the_migration_with_the_reason() {
    let a = Host::new("a");
    a.create("web", "").unwrap();
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let stranger = TcpListener::bind("127.0.0.1:0").unwrap();
    let strange = stranger.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in stranger.incoming() {
            let mut stream = stream.unwrap();
            stream.write_all(b"SSH-2.0-OpenSSH_9.6\r\n").unwrap();
            let _ = stream.read(&mut [0; 1024]);
        }
    });
    let cases = [
        (format!("http://{closed}"), "peer_unreachable"),
        ("unix:/nonexistent".into(), "peer_unreachable"),
        (format!("http://{strange}"), "peer_not_migrated"),
    ];
    for (to, code) in cases {
        let begun = start(&a, &json!({ "to": to })).unwrap();
        let ended = a.wait(&begun.id, ENDED);
        let error = ended.error.unwrap();
        assert_eq!(
            (ended.state, error.code.as_str()),
            (Some(MigrationState::Failed), code),
            "{}",
            error.message
        );
        assert_eq!(error.phase, Some(MigrationState::Negotiating));
        assert!(error.message.contains(&to), "{}", error.message);
        a.assert_state("web", VmState::Running);
    }
}

#[test]
fn what_the_source_itself_can_check_is_refused_at_once() {
    let a = Host::with("a", four_vcpus, |config| config.migration.allow_plain_tcp = false);
    a.create("web", "").unwrap();
    let to = "unix:/x";
    let cases = [
        (json!({ "to": "elsewhere" }), "peer_unknown"),
        (json!({ "to": "ftp://x" }), "peer_unknown"),
        (json!({ "to": "https://x" }), "peer_unknown"),
        (json!({ "to": to, "transport": "tcp" }), "transport_unavailable"),
        (json!({ "to": to, "transport": "tcp+tls" }), "transport_unavailable"),
        (json!({ "to": to, "max_downtime_ms": 0 }), "invalid_request"),
        (json!({ "to": to, "max_downtime_ms": -1 }), "invalid_request"),
        (json!({ "to": to, "max_total_ms": 0 }), "invalid_request"),
        (json!({ "to": to, "max_total_ms": 1e300 }), "invalid_request"),
        (json!({ "to": to, "timeout_s": 1e300 }), "invalid_request"),
        (json!({ "to": to, "channels": 0 }), "invalid_request"),
        (json!({ "to": to, "channels": 65 }), "invalid_request"),
        (json!({ "to": to, "bandwidth_bps": 0 }), "invalid_request"),
        (json!({ "to": to, "max_iterations": 0 }), "invalid_request"),
        (json!({ "to": to, "mode": "teleport" }), "invalid_request"),
    ];
    for (request, code) in cases {
        let refused = problem(start(&a, &request));
        assert_eq!((refused.status, refused.code.as_str()), (422, code), "{request}");
    }
    assert_eq!(a.get::<MigrationList>("/v1/migrations").unwrap().migrations, []);
    assert_eq!(a.vm("web").unwrap().migration, None);
}

/// A host that is ready for every guest, and whose clock was never set; gives its URL.
fn host_without_a_clock() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let ready = json!({
        "endpoints": [], "server_name": null, "token": "00".repeat(32), "epoch": 1, "max_channels": 1,
        "clock": { "asked_unix_us": 5_000_000, "answered_unix_us": 6_000_000 },
    });
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = BufReader::new(stream.unwrap());
            let mut body = 0;
            for line in stream.by_ref().lines().map_while(Result::ok).take_while(|line| !line.is_empty()) {
                if let Some(length) = line.to_lowercase().strip_prefix("content-length:") {
                    body = length.trim().parse().unwrap();
                }
            }
            stream.by_ref().take(body).read_to_end(&mut Vec::new()).unwrap();
            let ready = ready.to_string();
            let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n";
            let answer = format!("{head}content-length: {}\r\n\r\n{ready}", ready.len());
            stream.get_mut().write_all(answer.as_bytes()).unwrap();
        }
    });
    url
}

#[test]
fn a_guest_does_not_go_where_its_clocks_would_jump() {
    let a = Host::new("a");
    a.create("web", "").unwrap();
    let begun = start(&a, &json!({ "to": host_without_a_clock() })).unwrap();
    let ended = a.wait(&begun.id, ENDED);
    let error = ended.error.unwrap();
    assert_eq!((error.code.as_str(), error.phase), ("clocks_disagree", Some(MigrationState::Preflight)));
    assert!(
        error.message.contains("behind this host's") && error.message.contains("time server"),
        "{error:?}"
    );
    a.assert_state("web", VmState::Running);
}

#[test]
fn a_destination_refuses_with_every_reason_and_nothing_moves() {
    let a = Host::new("a");
    let b = Host::with(
        "b",
        || Ok(crate::daemon::KvmFacts { max_vcpus: 0 }),
        |config| {
            config.migration.allow_plain_tcp = false;
            config.guests.memory_limit_bytes = Some(1 << 20);
        },
    );
    a.create("web", "").unwrap();
    let begun = a.migrate("web", &b);
    let ended = a.wait(&begun.id, ENDED);
    let error = ended.error.unwrap();
    assert_eq!((error.code.as_str(), error.phase), ("admission_refused", Some(MigrationState::Preflight)));
    for part in ["allow_plain_tcp", "vcpus is 1", "this host has 1 MiB left"] {
        assert!(error.message.contains(part), "{part}: {}", error.message);
    }
    assert_eq!((ended.wire_bytes.sent, ended.state), (0, Some(MigrationState::Failed)));
    a.assert_state("web", VmState::Running);
    assert_eq!(b.get::<MigrationList>("/v1/migrations").unwrap().migrations, []);
}

pub fn prepare_request() -> Value {
    json!({
        "protocol": { "min": PROTOCOL.min, "max": PROTOCOL.max },
        "migration": "0123456789abcdef0123456789abcdef",
        "vm": "fedcba9876543210fedcba9876543210",
        "spec": spec("web", ""),
        "description": description(64 << 20, cpus::guest("intel-skylake", "host")),
        "transport": "tcp",
        "channels": null,
        "verify": "off",
        "epoch": 1,
        "source": "a",
    })
}

#[test]
fn a_peer_is_refused_for_what_does_not_fit() {
    let b = Host::new("b");
    let mut no_ram = prepare_request();
    no_ram["description"]["ram"]["blocks"] = json!([]);
    let mut other_ram = prepare_request();
    other_ram["description"]["ram"]["blocks"][0]["pages"] = json!(1);
    let changed = |field: &str, value: Value| {
        let mut request = prepare_request();
        request[field] = value;
        request
    };
    let cases = [
        (changed("protocol", json!({ "min": 7, "max": 9 })), "protocol_version"),
        (changed("protocol", json!({ "min": 0, "max": 0 })), "protocol_version"),
        (changed("migration", json!("../x")), "invalid_id"),
        (changed("vm", json!("../../etc")), "invalid_id"),
        (changed("transport", json!("tcp+tls")), "transport_unavailable"),
        (changed("channels", json!(1000)), "invalid_channels"),
        (no_ram, "invalid_ram_layout"),
        (other_ram, "invalid_ram_layout"),
    ];
    for (request, code) in cases {
        let refused = problem(b.post::<Value>("/v1/incoming", &request));
        assert_eq!((refused.status, refused.code.as_str()), (409, "admission_refused"));
        let codes: Vec<_> = refused.reasons.iter().map(|reason| reason.code.as_str()).collect();
        assert_eq!(codes, [code]);
    }
    b.create("web", "").unwrap();
    let refused = problem(b.post::<Value>("/v1/incoming", &prepare_request()));
    assert_eq!(refused.reasons[0].code, "vm_name_taken");
}

#[test]
fn a_source_that_gives_up_leaves_nothing_and_gets_the_right_answer_for_ever() {
    let b = Host::new("b");
    let request = prepare_request();
    let path = format!("/v1/incoming/{}", request["migration"].as_str().unwrap());
    let resolve = |epoch: u64| b.post::<Value>(&format!("{path}/resolve"), &json!({ "epoch": epoch }));
    assert_eq!(resolve(1).unwrap(), json!({ "answer": "unknown" }));
    let prepared: Value = b.post("/v1/incoming", &request).unwrap();
    assert_eq!(prepared["endpoints"].as_array().unwrap().len(), 1);
    // A source that names no mode knows no other.
    assert_eq!(b.record(request["migration"].as_str().unwrap()).mode, Mode::Precopy);
    assert_eq!(problem(b.post::<Value>("/v1/incoming", &request)).reasons[0].code, "migration_id_taken");
    assert_eq!(problem(b.vm("web")).code, "vm_not_found");
    b.call(b.client.delete(&path)).unwrap();
    b.wait_until_forgotten(request["vm"].as_str().unwrap());
    assert_eq!(resolve(1).unwrap(), json!({ "answer": "never_ran" }));
    b.call(b.client.delete(&path)).unwrap();
}

#[test]
fn a_destination_answers_from_its_record_when_its_vm_process_is_dead() {
    let (a, b) = (Host::new("a"), Host::new("b"));
    a.create("web", "").unwrap();
    let begun = a.migrate("web", &b);
    a.wait(&begun.id, ENDED);
    b.wait(&begun.id, ENDED);
    b.kill_vm("web");
    b.wait_gone("web");
    let resolve = |epoch: u64| {
        b.post::<Value>(&format!("/v1/incoming/{}/resolve", begun.id), &json!({ "epoch": epoch }))
    };
    assert_eq!(resolve(1).unwrap(), json!({ "answer": "committed" }));
    assert_eq!(problem(resolve(2)).code, "unresolved");
    let committed = problem(b.call(b.client.delete(&format!("/v1/incoming/{}", begun.id))).map(|()| 0));
    assert_eq!(committed.code, "migration_not_cancellable");
}

#[test]
fn a_vm_of_a_full_host_stays_where_it_is_and_can_go_later() {
    let a = Host::new("a");
    let b = Host::with("b", four_vcpus, |config| config.guests.memory_limit_bytes = Some(64 << 20));
    a.create("web", "").unwrap();
    b.create("other", "").unwrap();
    let refused = a.migrate("web", &b);
    let error = a.wait(&refused.id, ENDED).error.unwrap();
    assert!(error.message.contains("0 MiB left"), "{}", error.message);
    let _: Vm = a.post("/v1/vms/web/pause", &()).unwrap();
    b.call(b.client.delete("/v1/vms/other")).unwrap();
    let begun = a.migrate("web", &b);
    assert_eq!(a.wait(&begun.id, ENDED).state, Some(MigrationState::Completed));
    b.vm("web").unwrap();
}
