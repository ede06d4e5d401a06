pub(super) mod bench;
mod bridge;
mod hostile;
mod moving;
mod traffic;
