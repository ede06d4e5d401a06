use crate::record::{ModePrediction, Prediction};

/// Rounds may take this many times what switching now would take. At a factor of 2 a guest that writes half as
/// fast as the link sends is the border: Σ λⁿ = 1 ÷ (1 − λ) = 2.
pub(crate) const PATIENCE: f64 = 2.0;
/// The same once rounds were chosen: a guest at the border must not make the choice alternate.
pub(crate) const STICKY_PATIENCE: f64 = 2.5;
/// Rounds that cost no more than this beyond switching are always worth it, in ms: a guest that is stopped needs
/// no page that is on another host, and can't lose one.
const GRACE_MS: f64 = 1000.0;

/// Whether rounds reach the limits, in a time that makes them better than switching now.
pub(crate) fn precopy_pays(predicted: &Prediction, patience: f64) -> bool {
    let rounds = predicted.precopy.total_ms - predicted.at_ms;
    let switching = predicted.postcopy.total_ms - predicted.at_ms;
    predicted.precopy.converges && rounds <= (patience * switching).max(switching + GRACE_MS)
}

/// A prediction in words.
pub(crate) fn summary(predicted: &Prediction) -> String {
    let mode = |name: &str, mode: &ModePrediction| {
        let how = if mode.converges { "" } else { " without converging" };
        format!(
            "{name} {:.2} s in all, {:.2} ms down, {} rounds{how}",
            mode.total_ms / 1e3,
            mode.downtime_ms,
            mode.rounds
        )
    };
    format!(
        "the guest writes {:.0} pages/s among {} (confidence {:.2} from {} samples), the link carries {:.0} MiB/s; \
         predicted: {}; {}; {}",
        predicted.dirty_rate_pps,
        predicted.working_set_pages,
        predicted.confidence,
        predicted.samples,
        predicted.link_bps / 8.0 / f64::from(1 << 20),
        mode("pre-copy", &predicted.precopy),
        mode("one more round and post-copy", &predicted.hybrid),
        mode("post-copy now", &predicted.postcopy),
    )
}
