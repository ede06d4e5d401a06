use std::io;

use thiserror::Error;

/// Why there is no such network.
#[derive(Debug, Error)]
pub enum NetnsError {
    /// Only root may make network namespaces.
    #[error("only root may make network namespaces; run this as root")]
    NotRoot,
    /// A program is missing.
    #[error("can't run `{command}`: there is no `{program}`; install {package}")]
    NoProgram {
        /// All of it.
        command: String,
        /// The program.
        program: String,
        /// Debian's package that has it.
        package: &'static str,
    },
    /// The system did not run it.
    #[error("can't run `{command}`: {source}")]
    Io {
        /// All of it.
        command: String,
        /// The system's answer.
        source: io::Error,
    },
    /// It failed.
    #[error("can't run `{command}`: {said}")]
    Failed {
        /// All of it.
        command: String,
        /// What it said.
        said: String,
    },
    /// Something in a namespace outlives being killed.
    #[error("processes {pids:?} in {namespace} survive being killed; look at them and remove it by hand")]
    Survivors {
        /// The namespace.
        namespace: String,
        /// Their ids.
        pids: Vec<u32>,
    },
}
