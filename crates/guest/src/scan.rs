//! Reading guest RAM at memory speed. This file is the crate's unsafe room.
//!
//! The guest may write a page while it is scanned here. That race can't be avoided and does no harm:
//! a page written during or after the scan is dirty again and comes in a later round, so a mixed or
//! stale answer is never the last one. What must be avoided is undefined behaviour, which a Rust
//! reference to such memory, or a plain load that the compiler may repeat or move, would be. So
//! there are only raw pointers and volatile loads here, as for memory of a device; each value is
//! loaded once and looked at in registers.

use std::arch::x86_64::{__m256i, _MM_HINT_T0, _mm_prefetch, _mm256_or_si256, _mm256_testz_si256};

use migrated_pages::PAGE_SIZE;
use vm_memory::VolatileSlice;

/// Bytes in a cache line of every x86-64 CPU.
const LINE: usize = 64;
/// How far ahead lines are fetched: the CPU's own prefetcher stops at each page's end, this does not.
const AHEAD: usize = 16 * LINE;

/// Whether a page is all zero. A page with data mostly says so in its first cache line.
///
/// # Panics
/// When `page` is not exactly one page, or not aligned to one.
pub fn is_zero(page: &VolatileSlice<'_>) -> bool {
    let guard = page.ptr_guard();
    let start = guard.as_ptr();
    assert!(page.len() == PAGE_SIZE && start.addr().is_multiple_of(PAGE_SIZE), "one whole page");
    if is_x86_feature_detected!("avx2") {
        // SAFETY: the CPU has AVX2; `page`, borrowed here, is one mapped page at `start`.
        unsafe { is_zero_avx2(start) }
    } else {
        // SAFETY: `page`, borrowed here, is one mapped page at `start`.
        unsafe { is_zero_words(start) }
    }
}

/// # Safety
/// The CPU has AVX2, and `start` is the page-aligned address of a page that stays mapped meanwhile.
#[target_feature(enable = "avx2")]
unsafe fn is_zero_avx2(start: *const u8) -> bool {
    let line = |offset: usize| {
        let at = start.wrapping_add(offset).cast::<__m256i>();
        // SAFETY: both halves lie in the page, aligned. Others may write them: see the top of the file.
        unsafe { _mm256_or_si256(at.read_volatile(), at.add(1).read_volatile()) }
    };
    let first = line(0);
    if _mm256_testz_si256(first, first) == 0 {
        return false;
    }
    (0..PAGE_SIZE).step_by(4 * LINE).all(|offset| {
        for ahead in (offset + AHEAD..).step_by(LINE).take(4) {
            // A hint: it reads nothing and can't fault, wherever it points.
            _mm_prefetch::<_MM_HINT_T0>(start.wrapping_add(ahead).cast());
        }
        let low = _mm256_or_si256(line(offset), line(offset + LINE));
        let high = _mm256_or_si256(line(offset + 2 * LINE), line(offset + 3 * LINE));
        let all = _mm256_or_si256(low, high);
        _mm256_testz_si256(all, all) == 1
    })
}

/// For CPUs before 2013.
///
/// # Safety
/// `start` is the page-aligned address of a page that stays mapped meanwhile.
unsafe fn is_zero_words(start: *const u8) -> bool {
    let word = |offset: usize| {
        // SAFETY: the word lies in the page, aligned. Others may write it: see the top of the file.
        unsafe { start.wrapping_add(offset).cast::<u64>().read_volatile() }
    };
    (0..PAGE_SIZE)
        .step_by(LINE)
        .all(|line| (line..line + LINE).step_by(8).fold(0, |all, at| all | word(at)) == 0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[repr(align(4096))]
    struct Page([u8; PAGE_SIZE]);

    /// The answers of every implementation this CPU has.
    fn answers(page: &mut Page) -> Vec<bool> {
        let start = page.0.as_mut_ptr();
        // SAFETY: the slice covers the page, which is borrowed exclusively for as long as it is used.
        let slice = unsafe { VolatileSlice::new(start, PAGE_SIZE) };
        // SAFETY: `start` is a page-aligned page that lives on.
        let mut answers = vec![is_zero(&slice), unsafe { is_zero_words(start) }];
        if is_x86_feature_detected!("avx2") {
            // SAFETY: as above, and the CPU has AVX2.
            answers.push(unsafe { is_zero_avx2(start) });
        }
        answers
    }

    #[test]
    fn finds_a_single_bit_anywhere() {
        let mut page = Box::new(Page([0; PAGE_SIZE]));
        assert!(answers(&mut page).iter().all(|zero| *zero));
        for byte in 0..PAGE_SIZE {
            page.0[byte] = 1 << (byte % 8);
            assert!(answers(&mut page).iter().all(|zero| !zero), "byte {byte}");
            page.0[byte] = 0;
        }
    }

    proptest! {
        #[test]
        fn agrees_with_looking_at_every_byte(bytes in prop::collection::vec((0..PAGE_SIZE, 0u8..3), 0..4)) {
            let mut page = Box::new(Page([0; PAGE_SIZE]));
            for (at, value) in bytes {
                page.0[at] = value;
            }
            let naive = page.0.iter().all(|byte| *byte == 0);
            prop_assert!(answers(&mut page).iter().all(|zero| *zero == naive));
        }
    }
}
