//! Plain TCP passes what every transport must.

use migrated_tcp::TcpTransport;
use migrated_transport::Transport;
use migrated_transport::conformance::Rig;

struct Plain(TcpTransport);

impl Rig for Plain {
    fn transport(&self) -> &dyn Transport {
        &self.0
    }
}

migrated_transport::conformance_tests!(Plain(TcpTransport::plain()));
