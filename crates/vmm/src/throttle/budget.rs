//! How long each vCPU must rest so that all together write no more than they may.
//!
//! A token bucket for each vCPU. In every period the pages that may be written are dealt out in equal parts,
//! and what a full bucket has no room for goes to the others, until it is all dealt or all are full: max-min
//! fairness, without anybody having to know what a vCPU would like to write. What a vCPU wrote is taken out of
//! its bucket. It writes first and is charged later, so a bucket may be in debt, and debt is what a rest
//! pays off: debt ÷ income. So a vCPU that writes little never rests, and one that writes too fast
//! alternates between a short slice of running and a rest, whose ratio finds itself.
//!
//! `max_slowdown` bounds each rest by the time that the vCPU ran before it, so the bound holds in every stretch
//! of slices and rests and not just on average. Debt that can't be paid off because of it is forgotten
//! beyond a limit: a guest that calms down is not punished for its past.

use std::time::Duration;

use migrated_guest::Throttle;

/// Longest time between two looks at the vCPUs. At a few 100,000 pages a second, the most that a vCPU can dirty,
/// it writes about a thousand pages in this time.
const LONGEST_PERIOD: Duration = Duration::from_millis(4);
/// Shortest time between two looks, and the slice that a vCPU runs between two rests. A look takes some µs a vCPU.
pub(super) const SHORTEST_PERIOD: Duration = Duration::from_micros(500);
/// Longest rest. With slices as short as they should be rests take some 50 ms. On a busy host the kick that ends a slice
/// comes late, and a rest must be as much longer, or the vCPU would write more than it may for as long as the
/// host is busy. The guest's timers notice that; its watchdogs, which wait for seconds, don't.
const LONGEST_REST: Duration = Duration::from_millis(500);
/// A shorter rest is not worth its kick and its two switches of context: debt grows until one is.
const SHORTEST_REST: Duration = Duration::from_micros(500);
/// Most time of running that a rest is measured by: no long rest because of a long time without one.
const MOST_AWAKE: Duration = Duration::from_millis(10);
/// What a bucket holds, in time of an equal part of the income.
const BUCKET: Duration = Duration::from_millis(20);
/// Most debt, in time of the whole income.
const MOST_DEBT: Duration = Duration::from_millis(500);

/// What a vCPU did in a period.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Spent {
    /// Pages that it wrote.
    pub(super) pages: f64,
    /// How long it rested.
    pub(super) rested: Duration,
}

/// The buckets of all vCPUs.
#[derive(Debug)]
pub(super) struct Budget {
    accounts: Vec<Account>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Account {
    /// Pages that may be written at once; debt when negative.
    balance: f64,
    /// How long it has run since its last rest was ordered.
    awake: Duration,
    /// What is left of that rest.
    resting: Duration,
}

/// What comes of a period.
#[derive(Debug, PartialEq)]
pub(super) struct Orders {
    /// How long each vCPU rests from now on.
    pub(super) rests: Vec<Option<Duration>>,
    /// When to look again.
    pub(super) next: Duration,
}

impl Budget {
    pub(super) fn new(vcpus: usize) -> Self {
        Self { accounts: vec![Account::default(); vcpus] }
    }

    /// Settles a period: `spent` has an entry for each vCPU.
    pub(super) fn settle(&mut self, throttle: &Throttle, period: Duration, spent: &[Spent]) -> Orders {
        let income = throttle.pages_per_second.max(1.0);
        let seconds = period.as_secs_f64();
        for (account, spent) in self.accounts.iter_mut().zip(spent) {
            account.balance = (account.balance - spent.pages).max(-income * MOST_DEBT.as_secs_f64());
            account.awake += period.saturating_sub(spent.rested);
            account.resting = account.resting.saturating_sub(period);
        }
        let dealt = self.deal(income * seconds, income * BUCKET.as_secs_f64() / self.accounts.len() as f64);
        let mut orders = Orders { rests: Vec::with_capacity(dealt.len()), next: LONGEST_PERIOD };
        for ((account, dealt), spent) in self.accounts.iter_mut().zip(dealt).zip(spent) {
            orders.rests.push(account.rest(throttle, dealt / seconds));
            orders.next = orders.next.min(account.lasts(spent, period));
        }
        orders.next = orders.next.clamp(SHORTEST_PERIOD, LONGEST_PERIOD);
        orders
    }

    /// Deals `pages` out to buckets of this size; returns what each got.
    fn deal(&mut self, mut pages: f64, size: f64) -> Vec<f64> {
        let mut dealt = vec![0.0; self.accounts.len()];
        loop {
            let room = |account: &Account| size - account.balance;
            let open = self.accounts.iter().filter(|account| room(account) > 0.0).count();
            let part = pages / open as f64;
            if open == 0 || part < f64::EPSILON * size {
                return dealt;
            }
            for (account, dealt) in self.accounts.iter_mut().zip(&mut dealt) {
                let got = part.min(room(account)).max(0.0);
                account.balance += got;
                *dealt += got;
                pages -= got;
            }
        }
    }
}

impl Account {
    /// How long it must rest, at this income in pages a second.
    fn rest(&mut self, throttle: &Throttle, income: f64) -> Option<Duration> {
        if !self.resting.is_zero() {
            return None;
        }
        let most = throttle.max_slowdown.clamp(0.0, Throttle::MAX_SLOWDOWN);
        let awake = self.awake.min(MOST_AWAKE).as_secs_f64();
        let allowed = (awake * most / (1.0 - most)).min(LONGEST_REST.as_secs_f64());
        let rest = (-self.balance / income.max(1.0)).min(allowed);
        let worth_it = rest >= SHORTEST_REST.as_secs_f64();
        worth_it.then(|| {
            self.awake = Duration::ZERO;
            self.resting = Duration::from_secs_f64(rest);
            self.resting
        })
    }

    /// When it is to be looked at again: after a slice behind its rest, or when its balance is used up if it
    /// writes on as in this period.
    fn lasts(&self, spent: &Spent, period: Duration) -> Duration {
        if !self.resting.is_zero() {
            return self.resting + SHORTEST_PERIOD;
        }
        let rate =
            spent.pages / period.saturating_sub(spent.rested).max(Duration::from_micros(1)).as_secs_f64();
        Duration::try_from_secs_f64(self.balance.max(0.0) / rate).unwrap_or(LONGEST_PERIOD)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// vCPUs that would write at these rates, in pages a second, simulated for a while.
    struct Simulation {
        rates: Vec<f64>,
        budget: Budget,
        rested: Vec<f64>,
        written: Vec<f64>,
        seconds: f64,
    }

    impl Simulation {
        fn run(throttle: Throttle, rates: &[f64]) -> Self {
            Self::run_late(throttle, rates, Duration::ZERO)
        }

        /// Every look at the vCPUs comes this much later than it should.
        fn run_late(throttle: Throttle, rates: &[f64], late: Duration) -> Self {
            let none = vec![0.0; rates.len()];
            let budget = Budget::new(rates.len());
            let (rested, written) = (none.clone(), none.clone());
            let mut this = Self { rates: rates.to_vec(), budget, rested, written, seconds: 0.0 };
            let mut resting = none;
            let mut period = LONGEST_PERIOD;
            while this.seconds < 5.0 {
                let seconds = period.as_secs_f64();
                let mut spent = Vec::new();
                for (vcpu, rate) in this.rates.iter().enumerate() {
                    let rest = resting[vcpu].min(seconds);
                    resting[vcpu] -= rest;
                    let pages = rate * (seconds - rest);
                    this.rested[vcpu] += rest;
                    this.written[vcpu] += pages;
                    spent.push(Spent { pages, rested: Duration::from_secs_f64(rest) });
                }
                this.seconds += seconds;
                let orders = this.budget.settle(&throttle, period, &spent);
                for (resting, order) in resting.iter_mut().zip(orders.rests) {
                    *resting = order.map_or(*resting, |rest| rest.as_secs_f64());
                }
                period = orders.next + late;
            }
            this
        }

        fn rate(&self, vcpu: usize) -> f64 {
            self.written[vcpu] / self.seconds
        }

        fn share(&self, vcpu: usize) -> f64 {
            self.rested[vcpu] / self.seconds
        }
    }

    fn throttle(pages_per_second: f64, max_slowdown: f64) -> Throttle {
        Throttle { pages_per_second, max_slowdown }
    }

    fn is_about(value: f64, wanted: f64) {
        assert!((value / wanted - 1.0).abs() < 0.05, "{value} is not about {wanted}");
    }

    #[test]
    fn a_writer_gets_all_that_readers_leave_and_they_never_rest() {
        let simulated = Simulation::run(throttle(17_000.0, 0.99), &[390_000.0, 0.0, 100.0]);
        is_about(simulated.rate(0), 16_900.0);
        assert_eq!((simulated.rested[1], simulated.rested[2]), (0.0, 0.0));
    }

    #[test]
    fn writers_share_by_max_min_fairness() {
        let simulated = Simulation::run(throttle(30_000.0, 0.99), &[390_000.0, 4_000.0, 50_000.0, 1_000.0]);
        is_about(simulated.rate(0), 12_500.0);
        is_about(simulated.rate(2), 12_500.0);
        assert_eq!((simulated.rested[1], simulated.rested[3]), (0.0, 0.0));
        let free = Simulation::run(throttle(30_000.0, 0.99), &[10_000.0, 4_000.0]);
        assert_eq!((free.rested[0], free.rested[1]), (0.0, 0.0), "the budget is enough for all");
    }

    #[test]
    fn kicks_that_come_late_are_made_up_for() {
        // Every slice takes 8 ms longer than ordered.
        let simulated = Simulation::run_late(throttle(6_000.0, 0.99), &[240_000.0], Duration::from_millis(8));
        is_about(simulated.rate(0), 6_000.0);
    }

    #[test]
    fn no_vcpu_rests_more_than_it_may() {
        for most in [0.1, 0.5, 0.8, 0.95] {
            let simulated = Simulation::run(throttle(1_000.0, most), &[390_000.0]);
            assert!(simulated.share(0) <= most + 0.01, "{} of {most}", simulated.share(0));
            is_about(simulated.share(0), most);
        }
        assert_eq!(Simulation::run(throttle(1_000.0, 0.0), &[390_000.0]).rested[0], 0.0);
    }

    #[test]
    fn debt_is_bounded() {
        let mut budget = Budget::new(1);
        let spent = |pages| [Spent { pages, rested: Duration::ZERO }];
        budget.settle(&throttle(1_000.0, 0.5), LONGEST_PERIOD, &spent(1e9));
        assert!(budget.accounts[0].balance >= -500.0);
        let mut seconds = 0.0;
        while budget.accounts[0].balance < 0.0 {
            let orders = budget.settle(&throttle(1_000.0, 0.5), LONGEST_PERIOD, &spent(0.0));
            assert!(orders.next >= SHORTEST_PERIOD);
            seconds += LONGEST_PERIOD.as_secs_f64();
        }
        assert!(seconds < 0.6, "{seconds}");
    }
}
