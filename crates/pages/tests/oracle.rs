//! Bitmaps and page sets against an oracle that is too simple to be wrong.

use std::collections::BTreeSet;

use migrated_pages::{BlockId, PageBitmap, PageRun, PageSet, RamBlock, RamLayout};
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Op {
    Set(u64, u64),
    Clear(u64, u64),
}

fn ops(pages: u64) -> impl Strategy<Value = Vec<Op>> {
    let range = (0..pages, 0..pages).prop_map(move |(first, n)| (first, n.min(pages - first)));
    prop::collection::vec(
        (any::<bool>(), range).prop_map(|(set, (f, n))| if set { Op::Set(f, n) } else { Op::Clear(f, n) }),
        0..40,
    )
}

proptest! {
    #[test]
    fn bitmap_is_a_set_of_integers((pages, ops) in (1u64..300).prop_flat_map(|n| (Just(n), ops(n)))) {
        let mut map = PageBitmap::new(pages);
        let mut oracle = BTreeSet::new();
        for op in ops {
            match op {
                Op::Set(first, n) => {
                    let newly = (first..first + n).filter(|p| oracle.insert(*p)).count() as u64;
                    prop_assert_eq!(map.set_range(first, n), newly);
                }
                Op::Clear(first, n) => {
                    let gone = (first..first + n).filter(|p| oracle.remove(p)).count() as u64;
                    prop_assert_eq!(map.clear_range(first, n), gone);
                }
            }
        }
        prop_assert_eq!(map.count(), oracle.len() as u64);
        let from_runs: Vec<u64> = map.runs().flat_map(|(f, n)| f..f + n).collect();
        prop_assert_eq!(from_runs, oracle.iter().copied().collect::<Vec<_>>());
        for (first, n) in map.runs() {
            prop_assert!(n > 0 && !map.get(first + n) && (first == 0 || !map.get(first - 1)), "runs are maximal");
        }
        for page in 0..pages {
            prop_assert_eq!(map.next_set(page), oracle.range(page..).next().copied());
            prop_assert_eq!(map.next_clear(page), (page..pages).find(|p| !oracle.contains(p)));
        }
        let mut other = PageBitmap::full(pages);
        prop_assert_eq!(other.count(), pages);
        prop_assert_eq!(other.or_words(map.words()), 0);
    }

    #[test]
    fn page_set_counts_what_it_holds(ops in ops(130)) {
        let block = |name: &str, base| RamBlock { name: name.into(), guest_base: base, pages: 130 };
        let layout = RamLayout::new(vec![block("a", 0), block("b", 1 << 32)]).unwrap();
        let mut set = PageSet::empty(&layout);
        for (i, op) in ops.iter().enumerate() {
            let block = BlockId((i % 2) as u16);
            match *op {
                Op::Set(first, count) => set.insert(PageRun { block, first, count }),
                Op::Clear(first, count) => set.remove(PageRun { block, first, count }),
            };
        }
        prop_assert_eq!(set.len(), set.runs().map(|r| r.count).sum::<u64>());
        let mut walked = 0;
        let (mut block, mut page) = (BlockId(0), 0);
        while let Some(run) = set.next_run(block, page, 7) {
            prop_assert!(run.count <= 7 && layout.contains(run));
            walked += run.count;
            (block, page) = (run.block, run.first + run.count);
        }
        prop_assert_eq!(walked, set.len());
        let mut all = PageSet::full(&layout);
        prop_assert_eq!(all.union(&set), 0);
        prop_assert_eq!(all.len(), layout.total_pages());
    }
}
