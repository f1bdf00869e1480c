//! Turns rows into call trees.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use thiserror::Error;

use super::order::Buckets;
use super::{MAX_DEPTH, Row};
use crate::model::TreeNode;

/// A node of a [`Tree`], as OAP lists it (`ProfileStackElement`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Element {
    /// From 1 (the root), breadth first, children in first-seen order.
    pub id: u32,
    /// 0 for the root.
    pub parent_id: u32,
    /// Code signature.
    pub code_signature: Arc<str>,
    /// Total, milliseconds.
    pub duration_ms: i64,
    /// Total less the children's, milliseconds. Negative if snapshot times ran backwards.
    pub self_ms: i64,
    /// Snapshots through the node.
    pub count: u32,
}

/// A call tree: its nodes in the order of their ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tree {
    elements: Vec<Element>,
}

/// Why a list of elements is no tree.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum TreeError {
    /// No element at all.
    #[error("call tree without a root")]
    Empty,
    /// Ids are not 1, 2, 3, ... or a parent does not come before its child.
    #[error("call tree element {0} is out of order")]
    OutOfOrder(usize),
    /// Deeper than [`MAX_DEPTH`].
    #[error("call tree deeper than {MAX_DEPTH} frames")]
    TooDeep,
}

impl Tree {
    /// Accepts elements from elsewhere.
    ///
    /// # Errors
    ///
    /// [`TreeError`] if they do not form one tree of at most [`MAX_DEPTH`] levels in id order.
    pub fn try_from_elements(elements: Vec<Element>) -> Result<Self, TreeError> {
        if elements.is_empty() {
            return Err(TreeError::Empty);
        }
        let mut depths = Vec::with_capacity(elements.len());
        for (index, element) in elements.iter().enumerate() {
            let parent = element.parent_id as usize;
            if element.id as usize != index + 1 || parent > index || (parent == 0) != (index == 0) {
                return Err(TreeError::OutOfOrder(index + 1));
            }
            let depth = parent.checked_sub(1).map_or(1, |i| depths[i] + 1);
            if depth > MAX_DEPTH {
                return Err(TreeError::TooDeep);
            }
            depths.push(depth);
        }
        Ok(Self { elements })
    }

    /// The nodes, by id.
    #[must_use]
    pub fn elements(&self) -> &[Element] {
        &self.elements
    }

    /// The nested form of reports.
    #[must_use]
    pub fn to_node(&self) -> TreeNode {
        let mut nodes: Vec<TreeNode> = self
            .elements
            .iter()
            .map(|element| TreeNode {
                code_signature: element.code_signature.to_string(),
                duration_ms: element.duration_ms,
                self_ms: element.self_ms,
                count: element.count,
                children: Vec::new(),
            })
            .collect();
        // Children have higher ids than their parents, so a node taken from the end is complete.
        while nodes.len() > 1 {
            let parent = self.elements[nodes.len() - 1].parent_id as usize - 1;
            if let Some(mut node) = nodes.pop() {
                node.children.reverse();
                nodes[parent].children.push(node);
            }
        }
        let mut root = nodes.pop().expect("a tree has a root");
        root.children.reverse();
        root
    }
}

/// A node while rows are added.
struct Node<'a> {
    signature: &'a Arc<str>,
    parent: Option<usize>,
    children: Vec<usize>,
    /// Sequence and time of the last snapshot through it.
    last: Option<(i32, i64)>,
    duration_ms: i64,
    count: u32,
}

/// All nodes of all trees; a root is a child of `None`.
#[derive(Default)]
struct Trie<'a> {
    nodes: Vec<Node<'a>>,
    roots: Vec<usize>,
    index: HashMap<(Option<usize>, &'a str), usize>,
    /// Leaf of a stack by address and length of its slice: repeated stacks share one allocation.
    leaves: HashMap<(usize, usize), usize>,
}

impl<'a> Trie<'a> {
    /// Adds the path of a stack; returns its leaf.
    fn insert(&mut self, stack: &'a [Arc<str>]) -> Option<usize> {
        let key = (stack.as_ptr() as usize, stack.len());
        if let Some(&leaf) = self.leaves.get(&key) {
            return Some(leaf);
        }
        let mut parent = None;
        for signature in &stack[..stack.len().min(MAX_DEPTH)] {
            let next = self.nodes.len();
            let node = *self.index.entry((parent, signature)).or_insert(next);
            if node == next {
                self.nodes.push(Node {
                    signature,
                    parent,
                    children: Vec::new(),
                    last: None,
                    duration_ms: 0,
                    count: 0,
                });
                match parent {
                    Some(parent) => self.nodes[parent].children.push(node),
                    None => self.roots.push(node),
                }
            }
            parent = Some(node);
        }
        if let Some(leaf) = parent {
            self.leaves.insert(key, leaf);
        }
        parent
    }

    /// Counts a snapshot for the leaf and all above it. Calls come in sequence order, so the sum
    /// of the steps inside a run is the time of its last snapshot less that of its first.
    fn count(&mut self, leaf: usize, sequence: i32, time_ms: i64) {
        let mut at = Some(leaf);
        while let Some(index) = at {
            let node = &mut self.nodes[index];
            node.count = node.count.saturating_add(1);
            if let Some((last, last_ms)) = node.last
                && i64::from(last) + 1 == i64::from(sequence)
            {
                let step = time_ms.saturating_sub(last_ms);
                node.duration_ms = node.duration_ms.saturating_add(step);
            }
            node.last = Some((sequence, time_ms));
            at = node.parent;
        }
    }

    /// Lists the tree below `root`, breadth first.
    fn tree(&self, root: usize) -> Tree {
        let mut elements: Vec<Element> = Vec::new();
        let mut queue = VecDeque::from([(root, 0)]);
        while let Some((index, parent_id)) = queue.pop_front() {
            let node = &self.nodes[index];
            let id = u32::try_from(elements.len() + 1).unwrap_or(u32::MAX);
            let self_ms = node.children.iter().fold(node.duration_ms, |rest, &child| {
                rest.saturating_sub(self.nodes[child].duration_ms)
            });
            elements.push(Element {
                id,
                parent_id,
                code_signature: Arc::clone(node.signature),
                duration_ms: node.duration_ms,
                self_ms,
                count: node.count,
            });
            queue.extend(node.children.iter().map(|&child| (child, id)));
        }
        Tree { elements }
    }
}

/// Builds one tree per distinct root frame. `rows` have distinct sequences and non-empty stacks;
/// their order decides the order of children.
pub(super) fn build(rows: &[Row<'_>]) -> Vec<Tree> {
    let mut trie = Trie::default();
    let mut buckets = Buckets::new();
    let mut counted: Vec<(i32, i64, usize)> = Vec::with_capacity(rows.len());
    for row in rows {
        let roots = trie.roots.len();
        if let Some(leaf) = trie.insert(row.stack) {
            buckets.compute_if_absent(trie.roots.len() > roots);
            counted.push((row.sequence, row.time_ms, leaf));
        }
    }
    counted.sort_by_key(|&(sequence, _, _)| sequence);
    for (sequence, time_ms, leaf) in counted {
        trie.count(leaf, sequence, time_ms);
    }
    let mut roots = std::mem::take(&mut trie.roots);
    buckets.sort(&mut roots, |&root| trie.nodes[root].signature);
    roots.into_iter().map(|root| trie.tree(root)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn element(id: u32, parent_id: u32) -> Element {
        Element {
            id,
            parent_id,
            code_signature: Arc::from(format!("f{id}")),
            duration_ms: 0,
            self_ms: 0,
            count: 1,
        }
    }

    /// Check that nesting keeps the order of children on every level.
    #[test]
    fn nesting_keeps_the_order_of_children() {
        let parents = [0, 1, 1, 2, 2, 3];
        let elements = (1..).zip(parents).map(|(id, p)| element(id, p)).collect();
        let root = Tree::try_from_elements(elements).unwrap().to_node();
        let names = |node: &TreeNode| -> Vec<String> {
            node.children
                .iter()
                .map(|n| n.code_signature.clone())
                .collect()
        };
        assert_eq!(names(&root), ["f2", "f3"]);
        assert_eq!(names(&root.children[0]), ["f4", "f5"]);
        assert_eq!(names(&root.children[1]), ["f6"]);
    }

    /// Check that a list that is not one tree in id order is refused.
    #[test]
    fn what_is_not_a_tree_is_refused() {
        let refused = |list: &[(u32, u32)]| {
            let elements = list.iter().map(|&(id, p)| element(id, p)).collect();
            Tree::try_from_elements(elements).unwrap_err()
        };
        assert_eq!(refused(&[]), TreeError::Empty);
        assert_eq!(refused(&[(1, 1)]), TreeError::OutOfOrder(1));
        assert_eq!(refused(&[(1, 0), (2, 0)]), TreeError::OutOfOrder(2));
        assert_eq!(refused(&[(1, 0), (2, 2)]), TreeError::OutOfOrder(2));
        assert_eq!(refused(&[(1, 0), (3, 1)]), TreeError::OutOfOrder(2));
        let chain: Vec<_> = (1..=1025).map(|id| (id, id - 1)).collect();
        assert_eq!(refused(&chain), TreeError::TooDeep);
        assert!(
            Tree::try_from_elements((1..=1024).map(|id| element(id, id - 1)).collect()).is_ok()
        );
    }
}
