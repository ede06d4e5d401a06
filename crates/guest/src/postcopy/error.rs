use std::io;

use migrated_kernel::UserfaultfdError;
use thiserror::Error;

/// Why post-copy can't fill a guest's RAM. The text says what a person would do next.
#[derive(Debug, Error)]
pub enum PostcopyError {
    /// RAM of this kind can't be filled while the guest runs.
    #[error(
        "post-copy can't fill guest RAM {place}; give the guest RAM in a memfd of 4 KiB pages, or migrate it by pre-copy"
    )]
    Unsupported {
        /// Where the RAM is, in words.
        place: &'static str,
    },
    /// The kernel or the permission for it is missing, or a call failed.
    #[error(transparent)]
    Userfaultfd(#[from] UserfaultfdError),
    /// The kernel refused something else.
    #[error("{operation} failed: {source}")]
    Kernel {
        /// What was tried.
        operation: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// Not all pages have come.
    #[error("{pages} pages of the guest's RAM have not come yet")]
    Missing {
        /// How many.
        pages: u64,
    },
}

/// For `map_err` of what the kernel refused.
pub(super) fn kernel<E: Into<io::Error>>(operation: &'static str) -> impl Fn(E) -> PostcopyError {
    move |source| PostcopyError::Kernel { operation, source: source.into() }
}
