//! What holds where a file says nothing.

use std::collections::BTreeMap;

use migrated_api::{OnTimeout, Verify};

use super::{ApiConfig, GuestsConfig, HostConfig, MigrationConfig, MigrationDefaults, TestingConfig};

impl Default for HostConfig {
    fn default() -> Self {
        Self {
            name: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            state_dir: "/var/lib/migrated".into(),
            api: ApiConfig::default(),
            guests: GuestsConfig::default(),
            migration: MigrationConfig::default(),
            peers: BTreeMap::new(),
            testing: TestingConfig::default(),
        }
    }
}

impl Default for ApiConfig {
    fn default() -> Self {
        Self {
            socket: "/run/migrated/api.sock".into(),
            socket_mode: "0660".into(),
            listen: None,
            token_file: None,
            tls: None,
        }
    }
}

impl Default for GuestsConfig {
    fn default() -> Self {
        Self { memory_limit_bytes: None, memory_reserve_bytes: 256 << 20, hide_cpu_features: Vec::new() }
    }
}

impl Default for MigrationConfig {
    fn default() -> Self {
        Self {
            ip: None,
            advertise: Vec::new(),
            // IANA's dynamic range starts here; 64 guests may come in at once.
            ports: (49152, 49215),
            allow_plain_tcp: false,
            server_name: None,
            tls: None,
            defaults: MigrationDefaults::default(),
        }
    }
}

impl Default for MigrationDefaults {
    fn default() -> Self {
        Self {
            max_downtime_ms: 300.0,
            max_total_ms: None,
            timeout_s: 600.0,
            on_timeout: OnTimeout::Cancel,
            max_iterations: 30,
            allow_postcopy: true,
            reconnect_window_ms: migrated_engine::RECONNECT_WINDOW.as_millis() as u64,
            max_slowdown_percent: 0,
            bandwidth_bps: None,
            channels: None,
            verify: Verify::Off,
        }
    }
}
