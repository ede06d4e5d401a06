//! What a guest gives up of its RAM, and where its agent is reached.

use migrated_api::{Balloon, Problem, Vm};
use serde_json::{Value, json};

use super::host::{Host, problem, spec};
use crate::client::ApiClientError;

/// A VM with a kernel, which the fake VM process doesn't look for.
fn create(host: &Host, words: &str) -> Vm {
    let mut spec = spec("web", "");
    spec["boot"] = json!({ "kind": "kernel", "kernel": "/vmlinuz", "cmdline": words });
    host.post("/v1/vms", &spec).unwrap()
}

fn set(host: &Host, vm: &str, target: &Value) -> Result<Vm, ApiClientError> {
    host.call(host.client.put(&format!("/v1/vms/{vm}/balloon"), target))
}

fn refusal(host: &Host, vm: &str, target: &Value) -> (u16, String) {
    let Problem { status, code, .. } = problem(set(host, vm, target));
    (status, code)
}

#[test]
fn a_guest_is_asked_for_ram_and_says_how_far_it_is() {
    let host = Host::new("a");
    let made = create(&host, "");
    assert_eq!(made.balloon, Some(Balloon::default()));
    let balloon = Balloon { target_bytes: 8192, actual_bytes: 4096, given_back_bytes: 4096 };
    assert_eq!(set(&host, "web", &json!({ "bytes": 8192 })).unwrap().balloon, Some(balloon));
    assert_eq!(host.vm(&made.id).unwrap().balloon, Some(balloon));
    host.create("workload", "").unwrap();
    assert_eq!(host.vm("workload").unwrap().balloon, None);
    let metrics = host.call(host.daemon.as_ref().unwrap().render_metrics());
    for line in
        ["migrated_balloon_bytes{amount=\"target\"} 8192", "migrated_balloon_bytes{amount=\"actual\"} 4096"]
    {
        assert!(metrics.contains(line), "{metrics}");
    }
}

#[test]
fn nobody_is_asked_who_cannot_answer() {
    let host = Host::new("a");
    let target = json!({ "bytes": 4096 });
    assert_eq!(refusal(&host, "web", &target), (404, "vm_not_found".into()));
    create(&host, "driverless");
    assert_eq!(refusal(&host, "web", &target), (409, "balloon_without_driver".into()));
    for wrong in [json!({}), json!({ "bytes": -1 }), json!({ "bytes": 1, "until": 2 })] {
        assert_eq!(refusal(&host, "web", &wrong), (422, "invalid_request".into()), "{wrong}");
    }
    let _: Vm = host.post("/v1/vms/web/pause", &()).unwrap();
    assert_eq!(refusal(&host, "web", &target), (409, "wrong_vm_state".into()));
    host.create("workload", "").unwrap();
    assert_eq!(refusal(&host, "workload", &target), (409, "guest_without_balloon".into()));
}

#[test]
fn a_guest_with_a_kernel_says_where_its_agent_is_reached() {
    let host = Host::new("a");
    let made = create(&host, "");
    let socket = host.config.state_dir.join("vms").join(&made.id).join("agent.sock");
    assert_eq!(made.agent_socket.as_deref(), socket.to_str());
    assert_eq!(host.create("workload", "").unwrap().agent_socket, None);
    host.kill_vm("web");
    host.wait_gone("web");
    let dead = host.vm("web").unwrap();
    assert_eq!((dead.agent_socket, dead.balloon), (None, None));
}
