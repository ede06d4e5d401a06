use crate::pair::LINK;

/// What is wrong with the link, in both directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing comes through, and nobody is told: a cable that was pulled, a switch that died.
    Drop,
    /// Every TCP segment is answered with a reset, as by a firewall that lost its state.
    Reset,
    /// So many packets of a hundred, picked at random, don't come through. With segmentation offload a packet
    /// here may be up to 64 KiB that a real link would carry in many.
    Loss(u8),
}

/// The table of nftables that holds it.
const TABLE: &str = "inet lab";

/// nft's commands that take what was set before away. Declaring an existing table is no error, deleting a missing one is.
pub(crate) fn without() -> String {
    format!("table {TABLE}\ndelete table {TABLE}\n")
}

/// nft's commands that set `fault`, and only it. What arrives is judged, not what is sent, so that senders see what
/// they would see of a real link: nothing.
pub(crate) fn with(fault: Fault) -> String {
    let rules = match fault {
        Fault::Drop => format!("iifname {LINK} drop"),
        // The reset itself must come through.
        Fault::Reset => format!(
            "iifname {LINK} tcp flags rst accept\niifname {LINK} meta l4proto tcp reject with tcp reset\niifname {LINK} drop"
        ),
        Fault::Loss(percent) => format!("iifname {LINK} numgen random mod 100 < {percent} drop"),
    };
    let chain = format!("chain input {{\ntype filter hook input priority 0\n{rules}\n}}");
    format!("{}table {TABLE} {{\n{chain}\n}}\n", without())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_replaces_what_was_before() {
        for fault in [Fault::Drop, Fault::Reset, Fault::Loss(2)] {
            let commands = with(fault);
            assert!(commands.starts_with(&without()), "{commands}");
            assert!(commands.contains("iifname veth0"), "what is on lo is not touched: {commands}");
        }
        assert!(with(Fault::Loss(2)).contains("numgen random mod 100 < 2 drop"));
    }
}
