/// One bit a page of one block.
///
/// Bits past the last page are always clear, so counting and iterating need no special case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageBitmap {
    words: Vec<u64>,
    pages: u64,
}

impl PageBitmap {
    /// A bitmap of `pages` clear bits.
    #[must_use]
    pub fn new(pages: u64) -> Self {
        Self { words: vec![0; pages.div_ceil(64) as usize], pages }
    }

    /// A bitmap of `pages` set bits.
    #[must_use]
    pub fn full(pages: u64) -> Self {
        let mut map = Self { words: vec![u64::MAX; pages.div_ceil(64) as usize], pages };
        map.trim();
        map
    }

    /// How many pages the bitmap is about.
    #[must_use]
    pub const fn pages(&self) -> u64 {
        self.pages
    }

    /// The bits, least significant first, as KVM lays them out.
    #[must_use]
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    /// Whether the page's bit is set; false for a page outside.
    #[must_use]
    pub fn get(&self, page: u64) -> bool {
        page < self.pages && self.words[(page / 64) as usize] & (1 << (page % 64)) != 0
    }

    /// Sets a page's bit and says whether it was clear.
    ///
    /// # Panics
    /// On a page outside the bitmap.
    pub fn set(&mut self, page: u64) -> bool {
        assert!(page < self.pages, "page {page} of {}", self.pages);
        let (word, bit) = (&mut self.words[(page / 64) as usize], 1u64 << (page % 64));
        let was_clear = *word & bit == 0;
        *word |= bit;
        was_clear
    }

    /// Clears a page's bit and says whether it was set.
    ///
    /// # Panics
    /// On a page outside the bitmap.
    pub fn clear(&mut self, page: u64) -> bool {
        assert!(page < self.pages, "page {page} of {}", self.pages);
        let (word, bit) = (&mut self.words[(page / 64) as usize], 1u64 << (page % 64));
        let was_set = *word & bit != 0;
        *word &= !bit;
        was_set
    }

    /// Sets `count` bits from `first` and returns how many of them were clear.
    ///
    /// # Panics
    /// On a range outside the bitmap.
    pub fn set_range(&mut self, first: u64, count: u64) -> u64 {
        let mut newly = 0;
        self.for_range(first, count, |word, mask| {
            newly += u64::from((mask & !*word).count_ones());
            *word |= mask;
        });
        newly
    }

    /// Clears `count` bits from `first` and returns how many of them were set.
    ///
    /// # Panics
    /// On a range outside the bitmap.
    pub fn clear_range(&mut self, first: u64, count: u64) -> u64 {
        let mut cleared = 0;
        self.for_range(first, count, |word, mask| {
            cleared += u64::from((mask & *word).count_ones());
            *word &= !mask;
        });
        cleared
    }

    fn for_range(&mut self, first: u64, count: u64, mut f: impl FnMut(&mut u64, u64)) {
        let end = first.checked_add(count).expect("a page range ends below 2^64");
        assert!(end <= self.pages, "pages {first}..{end} of {}", self.pages);
        let mut page = first;
        while page < end {
            let bit = page % 64;
            let take = (64 - bit).min(end - page);
            let mask = if take == 64 { u64::MAX } else { ((1 << take) - 1) << bit };
            f(&mut self.words[(page / 64) as usize], mask);
            page += take;
        }
    }

    /// ORs words laid out as KVM's dirty bitmap into this one and returns how many bits were new.
    ///
    /// # Panics
    /// When `words` is not exactly as long as this bitmap: zipping would lose dirty pages silently.
    pub fn or_words(&mut self, words: &[u64]) -> u64 {
        assert_eq!(words.len(), self.words.len(), "dirty bitmap of another length");
        let mut newly = 0;
        for (mine, theirs) in self.words.iter_mut().zip(words) {
            newly += u64::from((theirs & !*mine).count_ones());
            *mine |= theirs;
        }
        self.trim();
        newly
    }

    /// Number of set bits.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.words.iter().map(|w| u64::from(w.count_ones())).sum()
    }

    /// Whether no bit is set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|w| *w == 0)
    }

    /// Clears all bits.
    pub fn clear_all(&mut self) {
        self.words.fill(0);
    }

    /// First set bit at or after `from`.
    #[must_use]
    pub fn next_set(&self, from: u64) -> Option<u64> {
        self.find(from, |w| w)
    }

    /// First clear bit at or after `from`, within the bitmap.
    #[must_use]
    pub fn next_clear(&self, from: u64) -> Option<u64> {
        self.find(from, |w| !w).filter(|page| *page < self.pages)
    }

    fn find(&self, from: u64, of: impl Fn(u64) -> u64) -> Option<u64> {
        if from >= self.pages {
            return None;
        }
        let start = (from / 64) as usize;
        let mut word = of(self.words[start]) & (u64::MAX << (from % 64));
        let mut index = start;
        while word == 0 {
            index += 1;
            word = of(*self.words.get(index)?);
        }
        Some(index as u64 * 64 + u64::from(word.trailing_zeros()))
    }

    /// The set bits from `from` on as maximal `(first, count)` runs.
    #[must_use]
    pub fn runs_from(&self, from: u64) -> Runs<'_> {
        Runs { map: self, next: from }
    }

    /// All set bits as maximal `(first, count)` runs.
    #[must_use]
    pub fn runs(&self) -> Runs<'_> {
        self.runs_from(0)
    }

    fn trim(&mut self) {
        let tail = self.pages % 64;
        if let (true, Some(last)) = (tail != 0, self.words.last_mut()) {
            *last &= (1 << tail) - 1;
        }
    }
}

/// Iterator over runs of set bits, made by [`PageBitmap::runs`].
#[derive(Debug)]
pub struct Runs<'a> {
    map: &'a PageBitmap,
    next: u64,
}

impl Iterator for Runs<'_> {
    type Item = (u64, u64);

    fn next(&mut self) -> Option<(u64, u64)> {
        let first = self.map.next_set(self.next)?;
        let end = self.map.next_clear(first).unwrap_or(self.map.pages);
        self.next = end;
        Some((first, end - first))
    }
}
