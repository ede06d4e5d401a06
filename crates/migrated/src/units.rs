//! Sizes, rates, durations and ranges as people type them.

use std::time::Duration;

/// Bytes: `512M`, `4G`, `4GiB`, `1048576`. Units are powers of 1024.
pub fn size(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is no size; write e.g. 512M, 4G or a number of bytes");
    let (number, unit) = split(text);
    let factor: u64 = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1 << 40,
        _ => return Err(wrong()),
    };
    scaled(number, factor).ok_or_else(wrong)
}

/// Bits a second: `1gbit`, `500mbit`, `2.5Gbit/s`, `1000000`. Units are powers of 1000.
pub fn bit_rate(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is no rate; write e.g. 1gbit, 500mbit or a number of bits a second");
    let (number, unit) = split(text);
    let unit = unit.to_ascii_lowercase();
    let factor: u64 = match unit.trim_end_matches("/s") {
        "" | "bit" | "bps" => 1,
        "kbit" | "kbps" => 1_000,
        "mbit" | "mbps" => 1_000_000,
        "gbit" | "gbps" => 1_000_000_000,
        _ => return Err(wrong()),
    };
    scaled(number, factor).filter(|rate| *rate > 0).ok_or_else(wrong)
}

/// A time above 0: `50ms`, `1s`, `2m 30s`.
pub fn duration(text: &str) -> Result<Duration, String> {
    match duration_or_none(text)? {
        duration if !duration.is_zero() => Ok(duration),
        _ => Err(format!("{text:?} is no time at all")),
    }
}

/// As [`duration`], or `0s`.
pub fn duration_or_none(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|e| format!("{text:?} is no duration ({e}); write e.g. 50ms, 1s or 2m"))
}

/// A share in whole percent, below 100: `80%`, `80`.
pub fn percent(text: &str) -> Result<u8, String> {
    let number = text.strip_suffix('%').unwrap_or(text);
    let wrong = || format!("{text:?} is no share; write 0% to 99%");
    number.parse().ok().filter(|percent| *percent < 100).ok_or_else(wrong)
}

/// Two ports: `49152-49215`.
pub fn port_range(text: &str) -> Result<(u16, u16), String> {
    let wrong = || format!("{text:?} is no port range; write FIRST-LAST");
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (first.parse().map_err(|_| wrong())?, last.parse().map_err(|_| wrong())?);
    if first <= last { Ok((first, last)) } else { Err(wrong()) }
}

fn split(text: &str) -> (&str, &str) {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    (&text[..end], text[end..].trim())
}

/// A decimal number times a factor, exact for whole numbers.
fn scaled(number: &str, factor: u64) -> Option<u64> {
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(factor);
    }
    let value = number.parse::<f64>().ok()? * factor as f64;
    (value.is_finite() && value < u64::MAX as f64).then_some(value as u64)
}

/// Bytes for people: `1.5 GiB`.
pub fn show_bytes(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}

/// Bits a second for people: `9.41 Gbit/s`.
pub fn show_bit_rate(bps: f64) -> String {
    let (divisor, unit) = match bps {
        b if b >= 1e9 => (1e9, "Gbit/s"),
        b if b >= 1e6 => (1e6, "Mbit/s"),
        b if b >= 1e3 => (1e3, "kbit/s"),
        _ => (1.0, "bit/s"),
    };
    format!("{:.2} {unit}", bps / divisor)
}

/// A time for people: `850 µs`, `12.3 ms`, `4.56 s`.
pub fn show_us(us: f64) -> String {
    match us {
        us if us < 1e3 => format!("{us:.0} µs"),
        us if us < 1e6 => format!("{:.2} ms", us / 1e3),
        us => format!("{:.2} s", us / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(size("512M"), Ok(512 << 20));
        assert_eq!(size("1.5GiB"), Ok(3 << 29));
        assert_eq!(size("4096"), Ok(4096));
        assert_eq!(size("2 k"), Ok(2048));
        for wrong in ["", "M", "12X", "-1M", "1e3", "99999999999T", "1.2.3M"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn rates() {
        assert_eq!(bit_rate("1gbit"), Ok(1_000_000_000));
        assert_eq!(bit_rate("2.5Gbit/s"), Ok(2_500_000_000));
        assert_eq!(bit_rate("300"), Ok(300));
        for wrong in ["", "0", "0gbit", "1gbyte", "fast"] {
            assert!(bit_rate(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn durations_and_ranges() {
        assert_eq!(duration("50ms"), Ok(Duration::from_millis(50)));
        assert!(duration("50").is_err());
        assert!(duration("0s").is_err());
        assert_eq!(port_range("1-2"), Ok((1, 2)));
        assert_eq!(port_range("7"), Ok((7, 7)));
        for wrong in ["2-1", "1-70000", "a-b", ""] {
            assert!(port_range(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn shares() {
        assert_eq!((percent("80%"), percent("0"), percent("99%")), (Ok(80), Ok(0), Ok(99)));
        for wrong in ["100%", "-1", "%", "0.5", "50 %"] {
            assert!(percent(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn figures_for_people() {
        assert_eq!(show_us(850.4), "850 µs");
        assert_eq!(show_us(12_345.0), "12.35 ms");
        assert_eq!(show_bit_rate(9.41e9), "9.41 Gbit/s");
        assert_eq!(show_bytes(3 << 29), "1.50 GiB");
    }
}
