//! What a migration would cost, asked of a daemon whose guests are none.

use std::net::TcpListener;

use migrated_api::{
    Admission, LinkSource, MigrationList, MigrationPlan, MigrationState, Mode, ProbeAnswer, Vm, VmState,
};
use migrated_testkit::require;
use serde_json::{Value, json};

use super::host::{Host, four_vcpus, problem};
use super::migration::prepare_request;
use crate::client::ApiClientError;

const PATH: &str = "/v1/vms/web/migrations/plan";

/// The question whether `web` could go to `to`, with these fields besides.
fn request(to: &Host, more: Value) -> Value {
    let mut request = json!({ "to": format!("unix:{}", to.config.api.socket.display()) });
    request.as_object_mut().unwrap().append(&mut more.as_object().unwrap().clone());
    request
}

fn plan(from: &Host, to: &Host, more: Value) -> MigrationPlan {
    from.post(PATH, &request(to, more)).unwrap()
}

/// Nothing of a plan is left anywhere.
fn assert_untouched(a: &Host, b: &Host) {
    a.assert_state("web", VmState::Running);
    assert_eq!(a.vm("web").unwrap().migration, None);
    for host in [a, b] {
        assert_eq!(host.get::<MigrationList>("/v1/migrations").unwrap().migrations, []);
    }
    assert_eq!(std::fs::read_dir(b.config.state_dir.join("vms")).unwrap().count(), 0);
}

#[test]
fn a_plan_rests_on_what_was_given_and_changes_nothing() {
    let (a, b) = (Host::new("a"), Host::new("b"));
    let vm = a.create("web", "").unwrap();
    let known = json!({ "link_bps": 1_000_000_000, "rtt_us": 200, "sample_ms": 100 });
    let planned = plan(&a, &b, known);
    assert_eq!((&planned.vm, planned.recommended), (&vm.id, Mode::Precopy), "{planned:#?}");
    assert_eq!((planned.link.bps, planned.link.source), (1_000_000_000, LinkSource::Given));
    assert_eq!((planned.link.rtt_us, planned.link.rtt_source), (200.0, LinkSource::Given));
    assert_eq!((planned.guest.took_ms, planned.guest.nonzero_pages), (100.0, 8192));
    assert_eq!(planned.admission.reasons, []);
    // 32 MiB with content at 125 MB/s, after the set-up.
    let precopy = planned.prediction.precopy;
    assert!(precopy.within_limits && precopy.bytes == 32 << 20, "{precopy:?}");
    assert!((468.0..490.0).contains(&precopy.total_ms), "{precopy:?}");
    assert!(planned.rests_on.iter().any(|what| what.contains("was given")), "{:?}", planned.rests_on);
    assert_untouched(&a, &b);

    let slower = plan(&a, &b, json!({ "link_bps": 100_000_000, "rtt_us": 200 }));
    assert!(slower.prediction.precopy.total_ms > 5.0 * precopy.total_ms, "{slower:#?}");
    let late = plan(&a, &b, json!({ "link_bps": 100_000_000, "rtt_us": 0, "max_total_ms": 1000 }));
    assert!(!late.prediction.precopy.within_limits && late.prediction.precopy.converges, "{late:#?}");
    assert!(late.reason.contains("not within the 1.00 s"), "{}", late.reason);
}

#[test]
fn a_guest_that_outruns_the_link_is_planned_to_be_followed_by_its_memory_where_that_is_allowed() {
    require!(Userfaultfd);
    let (a, b) = (Host::new("a"), Host::new("b"));
    a.create("web", "busy").unwrap();
    let link = json!({ "link_bps": 1_000_000_000, "rtt_us": 100, "max_downtime_ms": 50 });
    let planned = plan(&a, &b, link.clone());
    assert!(!planned.prediction.precopy.converges && planned.risk.is_some(), "{planned:#?}");
    assert_eq!(planned.recommended, Mode::Postcopy, "{planned:#?}");
    for (forbidding, says) in [("allow_postcopy", json!(false)), ("verify", json!("before"))] {
        let mut more = link.clone();
        more[forbidding] = says;
        let planned = plan(&a, &b, more);
        assert!(!planned.prediction.postcopy.possible, "{planned:#?}");
        assert_eq!((planned.recommended, planned.risk), (Mode::Precopy, None));
        assert!(planned.reason.contains("post-copy is not possible"), "{}", planned.reason);
    }
    // A link that drains faster than it writes.
    let fast = plan(&a, &b, json!({ "link_bps": 40_000_000_000_u64, "rtt_us": 100, "max_downtime_ms": 50 }));
    assert_eq!(fast.recommended, Mode::Precopy, "{fast:#?}");
    let _: Vm = a.post("/v1/vms/web/pause", &()).unwrap();
    let paused = plan(&a, &b, link);
    assert!(paused.rests_on[0].contains("paused"), "{:?}", paused.rests_on);
}

#[test]
fn a_link_is_probed_until_a_migration_has_shown_what_it_carries() {
    let (a, b) = (Host::new("a"), Host::new("b"));
    a.create("web", "").unwrap();
    let probed = plan(&a, &b, json!({}));
    assert_eq!((probed.link.source, probed.link.rtt_source), (LinkSource::Probe, LinkSource::Probe));
    assert!(probed.link.bps > 0 && probed.link.rtt_us > 0.0, "{:?}", probed.link);
    assert_untouched(&a, &b);

    for (name, limit, then) in
        [("slowly", json!(1_000_000), LinkSource::Probe), ("freely", Value::Null, LinkSource::LastMigration)]
    {
        a.create(name, "measured").unwrap();
        let begun: migrated_api::MigrationRecord = a
            .post(&format!("/v1/vms/{name}/migrations"), &request(&b, json!({ "bandwidth_bps": limit })))
            .unwrap();
        a.wait(&begun.id, &[MigrationState::Completed]);
        let planned = plan(&a, &b, json!({}));
        assert_eq!(planned.link.source, then, "{name}");
        if then == LinkSource::LastMigration {
            assert_eq!((planned.link.bps, planned.link.rtt_source), (3_000_000_000, LinkSource::Probe));
            assert!(planned.rests_on.iter().any(|what| what.contains(&begun.id)), "{:?}", planned.rests_on);
        }
    }
    let given = plan(&a, &b, json!({ "link_bps": 5 }));
    assert_eq!((given.link.bps, given.link.source), (5, LinkSource::Given));
}

#[test]
fn a_destination_that_would_refuse_says_every_reason_and_nothing_begins() {
    let a = Host::new("a");
    let b = Host::with("b", four_vcpus, |config| {
        config.migration.allow_plain_tcp = false;
        config.guests.memory_limit_bytes = Some(1 << 20);
    });
    a.create("web", "").unwrap();
    let planned = plan(&a, &b, json!({ "link_bps": 1_000_000_000 }));
    let codes: Vec<_> = planned.admission.reasons.iter().map(|reason| reason.code.as_str()).collect();
    assert_eq!(codes, ["transport_unavailable", "insufficient_memory"]);
    assert!(planned.prediction.precopy.possible);
    assert_untouched(&a, &b);
}

#[test]
fn a_plan_is_refused_for_what_a_migration_would_be_and_for_what_can_not_be() {
    let (a, b) = (Host::new("a"), Host::new("b"));
    a.create("web", "").unwrap();
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let with = |more: Value| request(&b, more);
    for (request, status, code) in [
        (with(json!({ "link_bps": 0 })), 422, "invalid_request"),
        (with(json!({ "link_bps": -1 })), 422, "invalid_request"),
        (with(json!({ "link_bps": "1gbit" })), 422, "invalid_request"),
        (with(json!({ "rtt_us": -1 })), 422, "invalid_request"),
        (with(json!({ "rtt_us": 1e300 })), 422, "invalid_request"),
        (with(json!({ "sample_ms": 59 })), 422, "invalid_request"),
        (with(json!({ "sample_ms": 10_001 })), 422, "invalid_request"),
        (with(json!({ "max_downtime_ms": 0 })), 422, "invalid_request"),
        (with(json!({ "max_total_ms": -1 })), 422, "invalid_request"),
        (with(json!({ "speed": 1 })), 422, "invalid_request"),
        (json!({}), 422, "invalid_request"),
        (json!({ "to": "elsewhere" }), 422, "peer_unknown"),
        (with(json!({ "transport": "tcp+tls" })), 422, "transport_unavailable"),
        (json!({ "to": format!("http://{closed}") }), 502, "peer_unreachable"),
        (json!({ "to": "unix:/nonexistent" }), 502, "peer_unreachable"),
    ] {
        let refused = problem(a.post::<Value>(PATH, &request));
        assert_eq!((refused.status, refused.code.as_str()), (status, code), "{request}");
    }
    let several =
        problem(a.post::<Value>(PATH, &with(json!({ "link_bps": 0, "rtt_us": -1, "sample_ms": 1 }))));
    assert_eq!(several.reasons.len(), 3, "{several:?}");
    let unknown = problem(a.post::<Value>("/v1/vms/gone/migrations/plan", &with(json!({}))));
    assert_eq!((unknown.status, unknown.code.as_str()), (404, "vm_not_found"));
    assert_untouched(&a, &b);
}

#[test]
fn a_guest_in_a_migration_has_no_other_planned() {
    let (a, b) = (Host::new("a"), Host::new("b"));
    a.create("web", "endless").unwrap();
    let begun = a.migrate("web", &b);
    a.wait(&begun.id, &[MigrationState::Precopy]);
    let refused = problem(a.post::<Value>(PATH, &request(&b, json!({}))));
    assert_eq!((refused.status, refused.code.as_str()), (409, "migration_in_progress"));
    let _: Value = a.post(&format!("/v1/migrations/{}/cancel", begun.id), &()).unwrap();
    a.wait(&begun.id, &[MigrationState::Cancelled]);
    plan(&a, &b, json!({}));

    a.create("other", "departing").unwrap();
    let refused = problem(a.post::<Value>("/v1/vms/other/migrations/plan", &request(&b, json!({}))));
    assert_eq!((refused.status, refused.code.as_str()), (409, "migration_in_progress"));
}

#[test]
fn a_destination_answers_what_it_is_asked_beforehand() {
    let b = Host::new("b");
    let check = |request: &Value| b.post::<Admission>("/v1/incoming/check", request);
    assert!(check(&prepare_request()).unwrap().is_ok());
    let mut wrong = prepare_request();
    wrong["channels"] = json!(1000);
    assert_eq!(check(&wrong).unwrap().reasons[0].code, "invalid_channels");
    assert_eq!(problem(check(&json!({}))).code, "invalid_request");

    let flood = |bytes: u64| b.call(b.client.post_bytes("/v1/incoming/probe", vec![0; bytes as usize]));
    flood(0).unwrap();
    flood(ProbeAnswer::MAX_BYTES).unwrap();
    let too_much = flood(ProbeAnswer::MAX_BYTES + 1).unwrap_err();
    assert!(
        matches!(&too_much, ApiClientError::Problem(problem) if problem.code == "body_too_large"),
        "{too_much}"
    );
}
