//! The committed OpenAPI document is the API's.

use crate::http;

#[test]
fn the_committed_document_is_up_to_date() {
    let committed = concat!(env!("CARGO_MANIFEST_DIR"), "/../api/openapi.json");
    let ours = format!("{}\n", http::openapi().to_pretty_json().unwrap());
    assert!(
        std::fs::read_to_string(committed).unwrap() == ours,
        "crates/api/openapi.json is not what the API does; `cargo xtask openapi` writes it anew"
    );
}

#[test]
fn everything_that_the_issue_asks_for_is_there() {
    let document = serde_json::to_value(http::openapi()).unwrap();
    let expected = [
        ("/v1/vms", &["get", "post"][..]),
        ("/v1/vms/{vm}", &["get", "delete"]),
        ("/v1/vms/{vm}/balloon", &["put"]),
        ("/v1/vms/{vm}/pause", &["post"]),
        ("/v1/vms/{vm}/resume", &["post"]),
        ("/v1/vms/{vm}/console", &["get", "post"]),
        ("/v1/vms/{vm}/shutdown", &["post"]),
        ("/v1/vms/{vm}/migrations", &["post"]),
        ("/v1/vms/{vm}/migrations/plan", &["post"]),
        ("/v1/migrations", &["get"]),
        ("/v1/migrations/{id}", &["get"]),
        ("/v1/migrations/{id}/cancel", &["post"]),
        ("/v1/migrations/{id}/events", &["get"]),
        ("/v1/host/cpu", &["get"]),
        ("/v1/cpu/baseline", &["post"]),
        ("/v1/cpu/check", &["post"]),
        ("/v1/cpu/baselines", &["get"]),
        ("/healthz", &["get"]),
        ("/readyz", &["get"]),
        ("/metrics", &["get"]),
        ("/openapi.json", &["get"]),
    ];
    for (path, methods) in expected {
        for method in methods {
            assert!(document["paths"][path][method].is_object(), "{method} {path}");
        }
    }
}
