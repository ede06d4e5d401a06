use crate::Limits;
use crate::record::{ModePrediction, Prediction};

/// Rounds may take this many times what switching now would take. At a factor of 2 a guest that writes half as
/// fast as the link sends is the border: Σ λⁿ = 1 ÷ (1 − λ) = 2.
pub(crate) const PATIENCE: f64 = 2.0;
/// The same once rounds were chosen: a guest at the border must not make the choice alternate.
pub(crate) const STICKY_PATIENCE: f64 = 2.5;
/// Rounds that cost no more than this beyond switching are always worth it, in ms: a guest that is stopped needs
/// no page that is on another host, and can't lose one.
const GRACE_MS: f64 = 1000.0;

/// What a migration goes on as, and why.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Choice {
    /// Rounds until the guest may be stopped; else it switches and the rest follows it.
    pub(crate) rounds: bool,
    /// Rounds that need the guest slowed.
    pub(crate) slowed: bool,
    /// Why.
    pub(crate) why: String,
}

/// Rounds if they end, and in time: within `max_total` where that is stated, else within `patience` times what
/// switching now would take. Where no mode keeps to all limits, that which exceeds them least: of rounds that
/// end and a switch, whose downtimes both fit, the sooner; a switch where rounds don't end. Where the guest may
/// be slowed, rounds over a slowed one come before a switch if they do what is asked of others.
pub(crate) fn choose(predicted: &Prediction, limits: &Limits, patience: f64) -> Choice {
    let Prediction { precopy, hybrid, postcopy, .. } = predicted;
    let seconds = |mode: &ModePrediction| mode.total_ms / 1e3;
    let (rounds, why) = if !precopy.converges {
        (false, "rounds would not reach the limits".to_owned())
    } else if let Some(goal) = limits.max_total {
        let (took, goal) = (seconds(precopy), goal.as_secs_f64());
        if precopy.within_limits {
            (true, format!("rounds would end after {took:.2} s, within the {goal:.2} s that all may take"))
        } else {
            let sooner = precopy.total_ms <= postcopy.total_ms;
            (
                sooner,
                format!("rounds would end after {took:.2} s, not within the {goal:.2} s that all may take"),
            )
        }
    } else if precopy_pays(predicted, patience) {
        (true, "rounds reach the limits in a time worth it".to_owned())
    } else {
        (false, format!("rounds would take more than {patience} times as long as switching now"))
    };
    if !rounds && slowing_pays(predicted, limits, patience) {
        let took = seconds(&predicted.precopy_throttled);
        let why = format!("{why}, but would end after {took:.2} s if the guest is slowed");
        return Choice { rounds: true, slowed: true, why };
    }
    let any = [precopy, hybrid, postcopy].into_iter().any(|mode| mode.possible && mode.within_limits);
    let least =
        if any { "" } else { "; no mode is predicted to keep to all limits, this one exceeds them least" };
    Choice { rounds, slowed: false, why: format!("{why}{least}") }
}

/// Whether a stated total time is kept to by switching now and by nothing else.
pub(crate) fn only_switching_is_in_time(predicted: &Prediction, limits: &Limits) -> Option<String> {
    let Prediction { precopy, precopy_throttled, hybrid, postcopy, .. } = predicted;
    let goal = limits.max_total?.as_secs_f64();
    let slowed = precopy_throttled.possible && precopy_throttled.within_limits;
    (postcopy.within_limits && !hybrid.within_limits && !precopy.within_limits && !slowed)
        .then(|| format!("only switching now is predicted to end within the {goal:.2} s that all may take"))
}

/// Whether rounds reach the limits, in a time that makes them better than switching now.
fn precopy_pays(predicted: &Prediction, patience: f64) -> bool {
    pays(&predicted.precopy, predicted, patience)
}

/// Whether rounds over a slowed guest, if it may be slowed, keep to `max_total`, or are worth their time.
pub(crate) fn slowing_pays(predicted: &Prediction, limits: &Limits, patience: f64) -> bool {
    let slowed = &predicted.precopy_throttled;
    let in_time =
        if limits.max_total.is_some() { slowed.within_limits } else { pays(slowed, predicted, patience) };
    slowed.possible && slowed.converges && in_time
}

fn pays(mode: &ModePrediction, predicted: &Prediction, patience: f64) -> bool {
    let rounds = mode.total_ms - predicted.at_ms;
    let switching = predicted.postcopy.total_ms - predicted.at_ms;
    mode.converges && rounds <= (patience * switching).max(switching + GRACE_MS)
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
    let throttled = Some(&predicted.precopy_throttled).filter(|throttled| throttled.possible);
    let modes: Vec<String> = [
        Some(("pre-copy", &predicted.precopy)),
        throttled.map(|throttled| ("pre-copy throttled", throttled)),
        Some(("one more round and post-copy", &predicted.hybrid)),
        Some(("post-copy now", &predicted.postcopy)),
    ]
    .into_iter()
    .flatten()
    .map(|(name, cost)| mode(name, cost))
    .collect();
    format!(
        "the guest writes {:.0} pages/s among {} (confidence {:.2} from {} samples), the link carries {:.0} MiB/s; \
         predicted: {}",
        predicted.dirty_rate_pps,
        predicted.working_set_pages,
        predicted.confidence,
        predicted.samples,
        predicted.link_bps / 8.0 / f64::from(1 << 20),
        modes.join("; "),
    )
}
