//! The network section of a VM: what is chosen, kept, refused here and refused at the destination.

use migrated_api::{MigrationState, Problem, Vm};
use serde_json::{Value, json};

use super::host::{Host, problem, spec};
use crate::client::ApiClientError;

const MAC: &str = "52:54:00:12:34:56";

fn with(name: &str, network: Value) -> Value {
    let mut spec = spec(name, "");
    spec["network"] = network;
    spec
}

fn create(host: &Host, name: &str, network: Value) -> Result<Vm, ApiClientError> {
    host.post("/v1/vms", &with(name, network))
}

fn refusal(host: &Host, network: Value) -> (Problem, Vec<String>) {
    let refused = problem(create(host, "g", network));
    let codes = refused.reasons.iter().map(|reason| reason.code.clone()).collect();
    (refused, codes)
}

#[test]
fn a_missing_address_is_chosen_once_and_kept() {
    let mut host = Host::new("a");
    host.add_bridge("br0");
    let made = create(&host, "g", json!([{ "bridge": "br0" }, { "bridge": "br0", "mac": MAC }])).unwrap();
    let macs: Vec<_> = made.spec.network.iter().map(|network| network.mac.unwrap()).collect();
    assert!(macs[0].to_string().starts_with("52:54:00:") && macs[0] != macs[1], "{macs:?}");
    assert_eq!(macs[1].to_string(), MAC);
    host.stop();
    host.start();
    assert_eq!(host.vm("g").unwrap().spec, made.spec);
}

#[test]
fn what_the_host_lacks_is_told_all_at_once() {
    let host = Host::new("a");
    host.add_bridge("br1");
    host.add_interface("eth0");
    let (refused, codes) = refusal(
        &host,
        json!([{ "bridge": "br0" }, { "bridge": "eth0" }, { "bridge": "br1", "tap": "eth0" }]),
    );
    assert_eq!((refused.status, refused.code.as_str()), (409, "network_unavailable"));
    assert_eq!(codes, ["bridge_missing", "not_a_bridge", "tap_in_use"]);
    assert!(refused.reasons[0].detail.contains("a, which has br1"), "{:?}", refused.reasons);
    // Beside what is wrong anywhere.
    let (refused, codes) = refusal(&host, json!([{ "bridge": "br0", "mtu": 1 }]));
    assert_eq!((refused.status, refused.code.as_str()), (422, "invalid_request"));
    assert_eq!(codes, ["invalid_mtu", "bridge_missing"]);
    for (mac, says) in
        [("52:54", "six pairs"), ("01:00:5e:00:00:01", "group"), ("00:00:00:00:00:01", "vendors")]
    {
        let (refused, _) = refusal(&host, json!([{ "bridge": "br1", "mac": mac }]));
        assert_eq!((refused.status, refused.code.as_str()), (422, "invalid_request"));
        assert!(refused.detail.contains(says), "{}", refused.detail);
    }
    create(&host, "g", json!([{ "bridge": "br0", "bridges": { "a": "br1" }, "tap": "tap0" }])).unwrap();
}

#[test]
fn an_address_belongs_to_one_vm_of_a_host() {
    let host = Host::new("a");
    host.add_bridge("br0");
    let network = json!([{ "bridge": "br0", "mac": MAC }]);
    create(&host, "first", network.clone()).unwrap();
    let (refused, codes) = refusal(&host, network.clone());
    assert_eq!((refused.code.as_str(), codes), ("network_unavailable", vec!["mac_in_use".to_owned()]));
    assert!(refused.detail.contains("VM first"), "{}", refused.detail);
    host.call(host.client.delete("/v1/vms/first")).unwrap();
    create(&host, "g", network).unwrap();
}

#[test]
fn a_destination_refuses_with_every_reason_before_anything_moves() {
    let (a, b) = (Host::new("a"), Host::new("b"));
    a.add_bridge("br0");
    b.add_bridge("br0");
    create(&b, "other", json!([{ "bridge": "br0", "mac": MAC }])).unwrap();
    let made = create(
        &a,
        "g",
        json!([{ "bridge": "br0", "bridges": { "b": "br7" }, "mac": MAC }, { "bridge": "br0", "tap": "tap0" }]),
    )
    .unwrap();
    b.add_interface("tap0");
    let refused = a.wait(&a.migrate("g", &b).id, &[MigrationState::Failed]);
    let error = refused.error.unwrap();
    assert_eq!(error.code, "admission_refused");
    for says in ["no bridge \"br7\" on b", "bridge@b=NAME", "interface \"tap0\"", "VM other"] {
        assert!(error.message.contains(says), "{says}: {}", error.message);
    }
    assert_eq!(a.vm("g").unwrap().migration, None);

    b.add_bridge("br7");
    b.remove_interface("tap0");
    b.call(b.client.delete("/v1/vms/other")).unwrap();
    let moved = a.migrate("g", &b);
    for host in [&a, &b] {
        host.wait(&moved.id, &[MigrationState::Completed]);
    }
    assert_eq!(b.vm("g").unwrap().spec, made.spec);
}
