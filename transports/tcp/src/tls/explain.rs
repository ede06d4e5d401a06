use migrated_transport::TransportError;
use rustls::{AlertDescription, CertificateError, Error, InvalidMessage};

use super::config::Files;

/// What an error of rustls means for the person who set up the two hosts.
pub(super) fn tls_error(peer: &str, files: &Files, error: &Error) -> TransportError {
    let (ca, cert) = (files.ca.display(), files.cert.display());
    let reason = match error {
        Error::InvalidCertificate(why) => match why {
            // A bad signature is what two authorities of one name give.
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                format!("the peer's certificate is not signed by our CA {ca}; both hosts need one CA")
            }
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                format!("the peer's certificate has expired ({why}); renew it there, or set the clocks right")
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                format!("the peer's certificate is not valid yet ({why}); set the clocks right")
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                format!(
                    "the peer's certificate is for another host ({why}); name the host as its certificate does"
                )
            }
            other => format!("the peer's certificate is not accepted: {other}"),
        },
        Error::NoCertificatesPresented => "the peer showed no certificate".to_owned(),
        Error::AlertReceived(alert) => match alert {
            AlertDescription::UnknownCA | AlertDescription::DecryptError => {
                format!(
                    "the peer does not trust our certificate {cert}: another CA signed it than the peer's"
                )
            }
            AlertDescription::CertificateExpired => {
                format!(
                    "the peer says that our certificate {cert} has expired or is not valid yet; renew it, or set the clocks right"
                )
            }
            AlertDescription::BadCertificate
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::AccessDenied => {
                format!("the peer does not accept our certificate {cert} ({alert:?})")
            }
            other => format!("the peer ended it with the alert {other:?}"),
        },
        Error::InvalidMessage(
            InvalidMessage::InvalidContentType
            | InvalidMessage::UnknownProtocolVersion
            | InvalidMessage::MessageTooLarge,
        ) => "the peer does not speak TLS; check the port, and that both hosts use the same transport"
            .to_owned(),
        other => other.to_string(),
    };
    TransportError::Tls { peer: peer.to_owned(), reason }
}
