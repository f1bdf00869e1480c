//! The rows of a call tree: times, a bar for the share, and the name in its place among its callers.

use super::View;
use super::merged::Node;
use super::style::Style;
use super::text::{clean, fit};

/// Columns that branches may take; beyond, the oldest ones are left out.
const INDENT_MAX_CHARS: usize = 48;
/// Least columns for a name, however narrow the terminal is.
const NAME_MIN_CHARS: usize = 24;
/// Fewest functions at the root that are worth a line which counts them.
const TRUNK_SKIPPED_MIN: usize = 2;
/// Columns of the bar.
const BAR_CHARS: usize = 10;

/// What was left out for being short.
#[derive(Default)]
struct Folded {
    nodes: usize,
    total_ms: i64,
}

/// Writes the rows of one forest.
pub(super) struct Rows<'a> {
    requests: usize,
    view: View,
    style: Style,
    text: &'a mut String,
    /// Milliseconds of the whole forest.
    whole_ms: i64,
    folded: Folded,
}

impl<'a> Rows<'a> {
    pub(super) fn new(requests: usize, view: View, style: Style, text: &'a mut String) -> Self {
        Self {
            requests,
            view,
            style,
            text,
            whole_ms: 0,
            folded: Folded::default(),
        }
    }

    pub(super) fn write(mut self, forest: &[Node<'_>]) {
        if forest.is_empty() {
            self.text
                .push_str("  no call tree: there are no snapshots\n");
            return;
        }
        self.whole_ms = forest
            .iter()
            .fold(0_i64, |sum, node| sum.saturating_add(node.total_ms));
        self.text.push_str(if self.requests == 1 {
            "\n  total ms   self ms   count  share\n"
        } else {
            "\n   mean ms  worst ms   self ms   count  share\n"
        });
        for tree in self.long(forest) {
            self.trunk(tree);
        }
        let Folded { nodes, total_ms } = self.folded;
        if nodes > 0 {
            self.text.push_str(&format!(
                "  {nodes} function{} below {} %, {total_ms} ms in all, not shown (--min-percent 0 shows them)\n",
                if nodes == 1 { "" } else { "s" },
                self.view.min_percent,
            ));
        }
    }

    /// The nodes that are long enough to be shown; the others are counted.
    fn long<'n, 's>(&mut self, nodes: &'n [Node<'s>]) -> Vec<&'n Node<'s>> {
        let least_ms = self.least_ms();
        let (long, short): (Vec<_>, Vec<_>) = nodes
            .iter()
            .partition(|node| self.whole_ms <= 0 || node.total_ms as f64 >= least_ms);
        for node in short {
            self.folded.nodes += count(node);
            self.folded.total_ms = self.folded.total_ms.saturating_add(node.total_ms);
        }
        long
    }

    /// A tree from its root on. Functions at its beginning that only call the next one are counted, but for
    /// the first: they say little more than how a server calls its handlers.
    fn trunk(&mut self, tree: &Node<'_>) {
        let mut chain = vec![tree];
        let mut children = self.long(&tree.children);
        while let [only] = children.as_slice()
            && self.only_calls(chain[chain.len() - 1])
        {
            chain.push(only);
            children = self.long(&only.children);
        }
        let skipped = chain.len().saturating_sub(2);
        for (index, node) in chain.iter().enumerate() {
            let is_between = (1..=skipped).contains(&index);
            if !is_between || skipped < TRUNK_SKIPPED_MIN {
                self.row(node, "", "");
            } else if index == 1 {
                let width = self.numbers(node).chars().count();
                let line = format!("\u{22ee} {skipped} functions that only call the next one");
                self.text.push_str(&format!("{:width$}{line}\n", ""));
            }
        }
        self.branches(&children, &mut String::new());
    }

    /// Whether nothing of a node's time is its own.
    fn only_calls(&self, node: &Node<'_>) -> bool {
        self.view.min_percent > 0.0 && (node.self_ms as f64) < self.least_ms()
    }

    fn least_ms(&self) -> f64 {
        self.view.min_percent / 100.0 * self.whole_ms as f64
    }

    /// A node and what is below it. `indent` is what stands before the names of this column.
    fn tree(&mut self, node: &Node<'_>, indent: &mut String, branch: &str) {
        let (mut node, mut branch) = (node, branch);
        loop {
            self.row(node, indent, branch);
            // From the second row on the branch continues as a line, or is over.
            if !branch.is_empty() {
                indent.push_str(if branch.starts_with('├') {
                    "│  "
                } else {
                    "   "
                });
                branch = "";
            }
            match self.long(&node.children).as_slice() {
                [only] => node = only,
                children => return self.branches(children, indent),
            }
        }
    }

    /// The callees of one caller, or the only one that is long enough.
    fn branches(&mut self, children: &[&Node<'_>], indent: &mut String) {
        if let [only] = children {
            return self.tree(only, indent, "");
        }
        for (index, child) in children.iter().enumerate() {
            let length = indent.len();
            let is_last = index + 1 == children.len();
            self.tree(child, indent, if is_last { "└─ " } else { "├─ " });
            indent.truncate(length);
        }
    }

    fn row(&mut self, node: &Node<'_>, indent: &str, branch: &str) {
        let chars = indent.chars().count() + branch.chars().count();
        let (dots, skipped) = match chars.checked_sub(INDENT_MAX_CHARS) {
            Some(over) if over > 0 => ("\u{2026}", over + 1),
            _ => ("", 0),
        };
        let numbers = self.numbers(node);
        let lines: String = indent.chars().chain(branch.chars()).skip(skipped).collect();
        let name = clean(node.signature);
        let name = match self.style.width {
            Some(width) => {
                let used = numbers.chars().count() + chars.min(INDENT_MAX_CHARS);
                fit(&name, width.saturating_sub(used).max(NAME_MIN_CHARS))
            }
            None => name,
        };
        let name = self.style.paint(&name, node.signature);
        self.text
            .push_str(&format!("{numbers}{dots}{lines}{name}\n"));
    }

    /// Everything before the name.
    fn numbers(&self, node: &Node<'_>) -> String {
        let times = if self.requests == 1 {
            format!("{:>10}{:>10}", node.total_ms, node.self_ms)
        } else {
            let mean = |sum_ms: i64| sum_ms as f64 / self.requests as f64;
            format!(
                "{:>10.1}{:>10}{:>10.1}",
                mean(node.total_ms),
                node.worst_ms,
                mean(node.self_ms)
            )
        };
        let share = share_of(node.total_ms, self.whole_ms);
        format!(
            "{times}{:>8}  {} {:>3.0} %  ",
            node.count,
            bar(share),
            (share * 100.0).floor()
        )
    }
}

/// How many nodes there are, those below included.
fn count(node: &Node<'_>) -> usize {
    1 + node.children.iter().map(count).sum::<usize>()
}

/// From 0 to 1.
fn share_of(part_ms: i64, whole_ms: i64) -> f64 {
    if whole_ms <= 0 {
        return 0.0;
    }
    (part_ms as f64 / whole_ms as f64).clamp(0.0, 1.0)
}

/// A share as a bar of [`BAR_CHARS`] columns, in eighths of one.
fn bar(share: f64) -> String {
    const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let eighths = (share * 8.0 * BAR_CHARS as f64).round() as usize;
    let full = "█".repeat(eighths / 8);
    format!("{:<BAR_CHARS$}", full + EIGHTHS[eighths % 8])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Check the lengths of bars at both ends and between.
    #[test]
    fn bars_are_as_long_as_shares() {
        for (share, drawn) in [
            (0.0, ""),
            (0.001, ""),
            (0.05, "▌"),
            (0.5, "█████"),
            (1.0, "██████████"),
        ] {
            assert_eq!(bar(share).trim_end(), drawn);
            assert_eq!(bar(share).chars().count(), BAR_CHARS);
        }
    }
}
