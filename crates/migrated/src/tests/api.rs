//! What the API does with VMs, and with everything that is wrong.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use migrated_api::{Problem, VmList, VmState};
use serde_json::{Value, json};

use super::host::{Host, problem, spec};
use crate::daemon::probe_kvm_at;

/// Sends a request as it is and gives status, content type and body.
fn raw(host: &Host, request: &str) -> (u16, String, String) {
    let mut stream = UnixStream::connect(&host.config.api.socket).unwrap();
    // A body that is too large is answered before it is read to its end.
    let _ = stream.write_all(request.as_bytes());
    // For the same reason the connection may be reset behind the answer.
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let kind = head.lines().find_map(|line| line.strip_prefix("content-type: ")).unwrap_or_default();
    (status, kind.to_owned(), body.to_owned())
}

fn request(method: &str, path: &str, kind: &str, body: &str) -> String {
    format!(
        "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

#[test]
fn a_vm_lives_from_create_to_delete() {
    let host = Host::new("a");
    let vm = host.create("web", "").unwrap();
    assert_eq!((vm.name.as_str(), vm.state), ("web", VmState::Running));
    assert_eq!(vm.vcpu_blocked_us, 7);
    assert!(vm.pid.is_some() && vm.created_unix_ms > 0);
    assert_eq!(host.vm(&vm.id).unwrap(), host.vm("web").unwrap());
    assert_eq!(host.get::<VmList>("/v1/vms").unwrap().vms.len(), 1);

    let paused: migrated_api::Vm = host.post("/v1/vms/web/pause", &()).unwrap();
    assert_eq!(paused.state, VmState::Paused);
    let running: migrated_api::Vm = host.post("/v1/vms/web/resume", &()).unwrap();
    assert_eq!(running.state, VmState::Running);

    host.call(host.client.post_bytes("/v1/vms/web/console", b"typed".to_vec())).unwrap();
    let (status, kind, body) = raw(&host, &request("GET", "/v1/vms/web/console?from=6", "", ""));
    assert_eq!((status, kind.as_str()), (200, "application/octet-stream"));
    assert!(body.contains("from the guest\n") && body.contains("typed"), "{body}");
    assert!(!body.contains("hello"), "{body}");

    host.call(host.client.delete("/v1/vms/web")).unwrap();
    assert_eq!(problem(host.vm("web")).code, "vm_not_found");
    assert!(!host.config.state_dir.join("vms").join(&vm.id).exists());
}

#[test]
fn what_is_wrong_with_a_request_is_told_as_a_problem() {
    let host = Host::new("a");
    let json = "application/json";
    let good = spec("a", "").to_string();
    let unknown = good.replacen('{', "{\"colour\":1,", 1);
    let unknown_boot = good.replace("\"cmdline\"", "\"speed\":1,\"cmdline\"");
    let large = format!("{{\"name\":\"{}\"}}", "x".repeat(2 << 20));
    let cases = [
        ("POST", "/v1/vms", json, "{", 400, "malformed_json"),
        ("POST", "/v1/vms", json, "[]", 422, "invalid_request"),
        ("POST", "/v1/vms", json, "{}", 422, "invalid_request"),
        ("POST", "/v1/vms", json, &unknown, 422, "invalid_request"),
        ("POST", "/v1/vms", json, &unknown_boot, 422, "invalid_request"),
        ("POST", "/v1/vms", "text/plain", &good, 415, "unsupported_media_type"),
        ("POST", "/v1/vms", json, &large, 413, "body_too_large"),
        ("GET", "/v1/vms/no%20such", json, "", 404, "vm_not_found"),
        ("GET", "/v1/vms/%ff", json, "", 400, "invalid_path"),
        ("GET", "/v1/vms/..%2f..%2fetc", json, "", 404, "vm_not_found"),
        ("POST", "/v1/vms/gone/migrations", json, "{\"to\":\"b\"}", 404, "vm_not_found"),
        ("POST", "/v1/vms/gone/migrations", json, "{\"to\":\"b\",\"speed\":1}", 422, "invalid_request"),
        ("POST", "/v1/vms/gone/pause", json, "", 404, "vm_not_found"),
        ("DELETE", "/v1/vms/gone", json, "", 404, "vm_not_found"),
        ("GET", "/v1/vms/gone/console?form=1", json, "", 400, "invalid_query"),
        ("GET", "/v1/migrations/gone", json, "", 404, "migration_not_found"),
        ("POST", "/v1/migrations/gone/cancel", json, "", 404, "migration_not_found"),
        ("GET", "/v1/migrations/gone/events", json, "", 404, "migration_not_found"),
        ("DELETE", "/v1/incoming/gone", json, "", 404, "migration_not_found"),
        ("PATCH", "/v1/vms", json, "", 405, "method_not_allowed"),
        ("GET", "/v2/vms", json, "", 404, "not_found"),
    ];
    for (method, path, kind, body, status, code) in cases {
        let (got, kind, answer) = raw(&host, &request(method, path, kind, body));
        let problem: Problem =
            serde_json::from_str(&answer).unwrap_or_else(|e| panic!("{path}: {e}: {answer}"));
        assert_eq!(
            (got, problem.status, problem.code.as_str()),
            (status, status, code),
            "{method} {path} {body:.80}"
        );
        assert_eq!(kind, Problem::MEDIA_TYPE, "{path}");
        assert_eq!(problem.kind, format!("urn:migrated:problem:{code}"));
    }
}

#[test]
fn a_specification_is_refused_with_everything_that_is_wrong_with_it() {
    let host = Host::new("a");
    let mut wrong = spec("a/b", "");
    (wrong["memory_bytes"], wrong["vcpus"]) = (json!(0), json!(99));
    let refused = problem(host.post::<Value>("/v1/vms", &wrong));
    let codes: Vec<_> = refused.reasons.iter().map(|reason| reason.code.as_str()).collect();
    assert_eq!((refused.status, codes), (422, vec!["invalid_name", "invalid_memory", "invalid_vcpus"]));
}

#[test]
fn a_vm_that_cant_be_made_tells_why_and_leaves_nothing() {
    let host = Host::new("a");
    let cases = [
        ("refuse", 422, "kernel_not_elf", "not an ELF file"),
        ("die", 500, "vm_process_died", "exit status: 3"),
    ];
    for (word, status, code, detail) in cases {
        let refused = problem(host.create("a", word));
        assert_eq!((refused.status, refused.code.as_str()), (status, code));
        assert!(refused.detail.contains(detail), "{}", refused.detail);
        assert_eq!(host.get::<VmList>("/v1/vms").unwrap().vms, []);
        assert_eq!(std::fs::read_dir(host.config.state_dir.join("vms")).unwrap().count(), 0);
    }
    host.create("a", "").unwrap();
}

#[test]
fn names_are_unique_and_memory_is_finite() {
    let host = Host::with("a", super::host::four_vcpus, |config| {
        config.guests.memory_limit_bytes = Some(100 << 20);
    });
    host.create("a", "").unwrap();
    assert_eq!(problem(host.create("a", "")).code, "vm_name_taken");
    let refused = problem(host.create("b", ""));
    assert_eq!((refused.status, refused.code.as_str()), (409, "insufficient_memory"));
    assert!(
        refused.detail.contains("wants 64 MiB") && refused.detail.contains("36 MiB left"),
        "{}",
        refused.detail
    );
    let mut vast = spec("b", "");
    vast["memory_bytes"] = json!(1_u64 << 44);
    assert_eq!(problem(host.post::<Value>("/v1/vms", &vast)).code, "insufficient_memory");
    host.call(host.client.delete("/v1/vms/a")).unwrap();
    host.create("b", "").unwrap();
}

#[test]
fn without_kvm_the_daemon_serves_and_says_what_is_missing() {
    let missing = || probe_kvm_at(Path::new("/nonexistent/kvm"));
    let host = Host::with("a", missing, |_| ());
    let refused = problem(host.create("a", ""));
    assert_eq!((refused.status, refused.code.as_str()), (503, "kvm_unavailable"));
    assert!(
        refused.detail.contains("/nonexistent/kvm") && refused.detail.contains("kvm_intel"),
        "{}",
        refused.detail
    );
    assert_eq!(problem(host.get::<Value>("/readyz")).code, "kvm_unavailable");
    assert_eq!(raw(&host, &request("GET", "/healthz", "", "")).0, 200);
}

#[test]
fn metrics_are_those_that_are_declared() {
    use crate::metrics::DECLARED;
    let host = Host::new("a");
    host.create("a", "").unwrap();
    let (status, _, text) = raw(&host, &request("GET", "/metrics", "", ""));
    assert_eq!(status, 200);
    assert!(text.contains("migrated_vms{state=\"running\"} 1\n"), "{text}");
    assert!(text.contains("migrated_vcpu_blocked_seconds 0.000007\n"), "{text}");
    for line in text.lines().filter(|line| line.starts_with("# TYPE ")) {
        let name = line.split(' ').nth(2).unwrap();
        assert!(DECLARED.iter().any(|declared| declared.name == name), "{name} is not declared");
    }
}
