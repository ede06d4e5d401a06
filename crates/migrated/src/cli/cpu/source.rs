//! What people name on the command line: hosts, dumps and baselines.

use std::path::Path;

use anyhow::{Context, Result, bail};
use migrated_api::{BaselineSpec, CpuSource, CustomBaseline};
use migrated_cpuid::{Baseline, HOST, HostCpu};

use crate::client::ApiClientError;
use crate::daemon::{DaemonError, parse_dump};
use crate::http::ApiError;

/// A host or a file.
pub enum Source {
    /// A name or URL that a daemon understands.
    Host(String),
    /// A dump, understood.
    Dump {
        /// The CPU in it.
        host: Box<HostCpu>,
        /// Its JSON, to be sent.
        json: serde_json::Value,
    },
}

impl Source {
    /// A file where there is one, otherwise a host.
    pub fn of(text: &str) -> Result<Self> {
        let path = Path::new(text);
        // Also a pipe of the shell's.
        if path.exists() && !path.is_dir() {
            let dump = std::fs::read_to_string(path).with_context(|| format!("can't read {text}"))?;
            let host = Box::new(parse_dump(text, &dump).map_err(local)?);
            return Ok(Self::Dump { host, json: serde_json::from_str(&dump)? });
        }
        let is_url = text.contains(':');
        if !is_url && (text.contains('/') || text.ends_with(".json")) {
            bail!("there is no file {text}; `migrated cpu dump > {text}` on its host makes one");
        }
        Ok(Self::Host(text.to_owned()))
    }

    /// The CPU, where it is known here.
    pub fn dump(&self) -> Option<&HostCpu> {
        match self {
            Self::Dump { host, .. } => Some(host),
            Self::Host(_) => None,
        }
    }

    /// As the API takes it.
    pub fn into_api(self) -> CpuSource {
        match self {
            Self::Host(name) => CpuSource::Host(name),
            Self::Dump { json, .. } => CpuSource::Dump(json),
        }
    }
}

/// The error of a question that is answered here, as a daemon would have told it.
pub fn local(error: DaemonError) -> ApiClientError {
    ApiClientError::Problem(Box::new(ApiError::from(error).into_problem()))
}

/// A baseline's name, or what is in the TOML file of that path. A name that is known is a name.
pub fn baseline_spec(text: &str) -> Result<BaselineSpec> {
    let path = Path::new(text);
    let is_name = text == HOST || Baseline::level(text).is_ok();
    if is_name || !(path.is_file() || text.ends_with(".toml")) {
        return Ok(BaselineSpec::Named(text.to_owned()));
    }
    let file = std::fs::read_to_string(path).with_context(|| format!("can't read {text}"))?;
    let custom: CustomBaseline = toml::from_str(&file).with_context(|| {
        format!("{text} is no CPU baseline (its keys are name, base, add, remove, physical_address_bits)")
    })?;
    Ok(BaselineSpec::Custom(custom))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::cpus;

    #[test]
    fn what_is_a_file_is_a_dump_and_all_else_a_host() {
        let file = cpus::file("intel-haswell");
        let source = Source::of(file.to_str().unwrap()).unwrap();
        assert_eq!(source.dump().unwrap().identity.name, "intel-haswell");
        for host in ["host-b", "self", "http://127.0.0.1:1", "unix:/run/a.sock"] {
            assert!(matches!(Source::of(host).unwrap(), Source::Host(name) if name == host));
        }
        for missing in ["dumps/a", "./a", "a.json"] {
            let error = Source::of(missing).err().unwrap().to_string();
            assert!(error.contains("no file") && error.contains(missing), "{error}");
        }
        let dir = tempfile::tempdir().unwrap();
        let text = std::fs::read_to_string(&file).unwrap();
        for (name, text, says) in [
            ("cut.json", &text[..text.len() / 2], "cut off"),
            ("other.json", &text.replacen("\"format\": 1", "\"format\": 7", 1), "its format is 7"),
        ] {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            let error = Source::of(path.to_str().unwrap()).err().unwrap().to_string();
            assert!(error.contains(says) && error.contains(name), "{error}");
        }
    }

    #[test]
    fn a_baseline_is_a_name_or_a_file_of_known_keys() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.to_str().unwrap().to_owned()
        };
        for name in ["host", "intel-haswell+spec", "intel-hasvell"] {
            assert_eq!(baseline_spec(name).unwrap(), BaselineSpec::Named(name.into()));
        }
        let good = write("site", "base = \"intel-haswell\"\nremove = [\"avx2\"]\n");
        let custom = CustomBaseline {
            base: "intel-haswell".into(),
            remove: vec!["avx2".into()],
            ..CustomBaseline::default()
        };
        assert_eq!(baseline_spec(&good).unwrap(), BaselineSpec::Custom(custom));
        let unknown = write("bad.toml", "base = \"host\"\nremoves = []\n");
        let error = format!("{:#}", baseline_spec(&unknown).unwrap_err());
        assert!(error.contains("unknown field `removes`") && error.contains("bad.toml"), "{error}");
        let missing = dir.path().join("missing.toml");
        let error = format!("{:#}", baseline_spec(missing.to_str().unwrap()).unwrap_err());
        assert!(error.contains("can't read") && error.contains("missing.toml"), "{error}");
    }
}
