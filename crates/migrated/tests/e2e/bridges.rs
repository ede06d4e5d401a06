//! Bridges that are there, are called otherwise, or are missing.

use std::process::Command;

use migrated_api::{MigrationState, Vm};
use migrated_testkit::require;
use serde_json::json;

use crate::guest::{assert_runs_only, await_ready};
use crate::host::Host;
use crate::lab::Lab;

fn add_bridge(host: &Host, name: &str) {
    let args = ["-n", host.netns.name(), "link", "add", name, "type", "bridge"];
    assert!(Command::new("ip").args(args).status().unwrap().success());
}

#[test]
fn a_guest_goes_where_its_bridge_is() {
    require!(Kvm, Netns);
    let lab = Lab::new();
    let create = [
        "vm",
        "create",
        "--name",
        "g",
        "--memory",
        "32M",
        "--workload",
        "hot=4M rate=5000",
        "--net",
        "bridge=br0,bridge@b=br1",
    ];
    let (code, detail) = lab.a.cli_refused(&create);
    assert!(code == "network_unavailable" && detail.contains("no bridge \"br0\" on a"), "{code}: {detail}");
    assert_eq!(lab.a.vm_dirs(), 0);
    add_bridge(&lab.a, "br0");
    add_bridge(&lab.b, "br0");
    let made: Vm = serde_json::from_value(lab.a.cli(&create)).unwrap();
    await_ready(&lab.a, "g");

    let refused = lab.a.await_end(&lab.a.migrate("g", &json!({ "to": "b" })).id);
    let error = refused.error.unwrap();
    assert_eq!((error.code.as_str(), error.phase), ("admission_refused", Some(MigrationState::Preflight)));
    assert!(error.message.contains("no bridge \"br1\" on b, which has br0"), "{}", error.message);
    assert_runs_only("g", &lab.a, &lab.b);

    add_bridge(&lab.b, "br1");
    let moved = lab.a.migrate("g", &json!({ "to": "b" }));
    for host in [&lab.a, &lab.b] {
        let record = host.await_end(&moved.id);
        assert_eq!(record.state, Some(MigrationState::Completed), "{record:#?}");
    }
    assert_runs_only("g", &lab.b, &lab.a);
    assert_eq!(lab.b.vm("g").spec, made.spec);
    let shown = String::from_utf8(lab.b.run(&["vm", "show", "g"]).stdout).unwrap();
    let mac = made.spec.network[0].mac.unwrap().to_string();
    assert!(shown.contains(&mac) && shown.contains("br1 on b"), "{shown}");
    lab.b.cli(&["vm", "delete", "g"]);
    lab.await_tidy();
}
