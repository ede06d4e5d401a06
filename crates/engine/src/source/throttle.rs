//! The source's hold on what the guest writes.

use std::time::Duration;

use super::SourceAction;
use super::common::Common;
use crate::policy::Observation;
use crate::record::{Throttled, ThrottledVcpu};
use crate::throttle::{Controller, ThrottleCounts, ThrottleOrder};

/// What the source knows of its throttle.
#[derive(Debug, Default)]
pub(super) struct Hold {
    controller: Controller,
    /// Whether vCPUs are held back.
    on: bool,
    /// Whether they are not, only because the link is lost.
    suspended: bool,
    /// What they are or were held to.
    order: Option<ThrottleOrder>,
    /// Since when, or when they were last.
    since: Duration,
    /// For how long they were before that.
    before: Duration,
    /// Whether it failed, and is not tried again.
    failed: bool,
    /// When the counts were read last, and how long each vCPU had slept by then.
    read: (Duration, Vec<Duration>),
    /// Share of the time between the last two readings that the most throttled vCPU slept, in percent.
    percent: f64,
}

impl Common {
    /// Takes in what a round showed of the throttle, before anything is decided by it.
    pub(super) fn observe_throttle(&mut self, seen: &mut Observation) {
        // A time in which it was let go for a while, as when the link was lost, says nothing about the budget.
        let whole = self.hold.on && self.now.saturating_sub(self.hold.since) >= seen.progress.window;
        self.hold.controller.note(seen, whole.then_some(self.hold.percent));
        seen.progress.throttle_works =
            self.hold.on && self.hold.controller.has_room(&self.config.limits, seen);
    }

    /// Sets or corrects the guest's budget before another round. `wanted` is whether the policy wants it slowed;
    /// once it is, it stays so until [`Common::release_throttle`].
    pub(super) fn throttle(&mut self, seen: &Observation, wanted: bool) {
        let max_slowdown_percent = self.config.limits.max_slowdown_percent;
        if max_slowdown_percent == 0 || self.hold.failed || !(wanted || self.hold.on) {
            return;
        }
        let change = self.hold.controller.after_round(&self.config.limits, seen);
        let Some((pages_per_second, reason)) = change else { return };
        self.decide("throttle", reason);
        let began_ms = self.now.as_secs_f64() * 1e3;
        let throttled =
            self.record.throttle.get_or_insert_with(|| Throttled { began_ms, ..Throttled::default() });
        throttled.budget_pps = pages_per_second as f64;
        self.hold.order = Some(ThrottleOrder { pages_per_second, max_slowdown_percent });
        self.order_throttle();
    }

    fn order_throttle(&mut self) {
        let now = self.now;
        if let Some(throttled) = &mut self.record.throttle
            && !std::mem::replace(&mut self.hold.on, true)
        {
            self.hold.since = now;
            self.hold.read.0 = now;
            throttled.released_ms = None;
        }
        self.act(SourceAction::Throttle(self.hold.order));
    }

    /// The link is lost: until there is one again the guest need not wait for anything.
    pub(super) fn suspend_throttle(&mut self) {
        self.hold.suspended = self.hold.on;
        self.release_throttle();
    }

    /// As [`suspend_throttle`](Self::suspend_throttle), of a guest that was paused, which let go of it.
    pub(super) fn keep_throttle_for_later(&mut self) {
        self.hold.suspended = self.hold.order.is_some() && !self.hold.failed;
    }

    /// There is a link again.
    pub(super) fn resume_throttle(&mut self) {
        if std::mem::take(&mut self.hold.suspended) {
            self.order_throttle();
        }
    }

    /// Asks for the counts, where there are any.
    pub(super) fn read_throttle(&mut self) {
        if self.hold.on {
            self.act(SourceAction::ReadThrottle);
        }
    }

    /// Lets the guest go. To be called wherever rounds end while the guest runs on.
    pub(super) fn release_throttle(&mut self) {
        if self.hold.on {
            self.act(SourceAction::Throttle(None));
            self.act(SourceAction::ReadThrottle);
            self.released();
        }
    }

    /// Nothing is held back any more. Pausing the guest lets go of it, too: what it slept was read with the harvest.
    pub(super) fn released(&mut self) {
        if !std::mem::take(&mut self.hold.on) {
            return;
        }
        self.hold.before += self.now.saturating_sub(self.hold.since);
        self.hold.percent = 0.0;
        if let Some(throttled) = &mut self.record.throttle {
            throttled.released_ms = Some(self.now.as_secs_f64() * 1e3);
            throttled.percent = 0.0;
        }
    }

    /// Share of the last round that the most throttled vCPU slept, in percent.
    pub(super) const fn throttle_percent(&self) -> f64 {
        self.hold.percent
    }

    /// A verdict's reason, with what throttling did about it.
    pub(super) fn in_spite_of_throttle(&self, reason: String, seen: &Observation) -> String {
        if !self.hold.on {
            return reason;
        }
        let hold = &self.hold;
        format!("{reason}; {}", hold.controller.was_in_vain(&self.config.limits, seen))
    }

    /// Takes in the answer to [`SourceAction::ReadThrottle`].
    pub(super) fn throttle_read(&mut self, counts: &ThrottleCounts) {
        let slept: Vec<Duration> = counts.vcpus.iter().map(|(slept, _)| *slept).collect();
        let (then, before) = std::mem::replace(&mut self.hold.read, (self.now, slept));
        let window = self.now.saturating_sub(then).as_secs_f64();
        let before = before.into_iter().chain(std::iter::repeat(Duration::ZERO));
        let most = self.hold.read.1.iter().zip(before).map(|(now, before)| now.saturating_sub(before)).max();
        let Some(throttled) = &mut self.record.throttle else { return };
        if self.hold.on && window > 0.0 {
            let share = most.unwrap_or_default().as_secs_f64() / window;
            self.hold.percent = share.min(1.0) * 100.0;
            throttled.percent = self.hold.percent;
            throttled.max_percent = throttled.max_percent.max(self.hold.percent);
        }
        let now = if self.hold.on { self.now.saturating_sub(self.hold.since) } else { Duration::ZERO };
        let active_ms = (self.hold.before + now).as_secs_f64() * 1e3;
        throttled.attribution = counts.attribution;
        throttled.vcpus = counts
            .vcpus
            .iter()
            .map(|(slept, pages)| {
                let slept_ms = slept.as_secs_f64() * 1e3;
                let percent = if active_ms > 0.0 { (slept_ms / active_ms * 100.0).min(100.0) } else { 0.0 };
                ThrottledVcpu { slept_ms, percent, pages: *pages }
            })
            .collect();
        throttled.lost_ms = throttled.vcpus.iter().map(|vcpu| vcpu.slept_ms).sum();
    }

    /// The guest can't be throttled: it goes on without.
    pub(super) fn throttle_failed(&mut self, reason: String) {
        self.decide("throttle_unavailable", format!("{reason}; the guest is not slowed"));
        self.hold.failed = true;
        self.released();
        self.record.throttle.take_if(|throttled| throttled.vcpus.is_empty());
    }
}
