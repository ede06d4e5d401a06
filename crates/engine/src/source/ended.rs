use super::Failure;

/// Over. Nothing changes any more.
pub(super) struct Ended {
    pub(super) result: Result<(), Failure>,
}
