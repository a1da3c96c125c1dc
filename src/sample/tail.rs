//! Texts that end a continuation.

/// Text that is on its way to the reader. It is held back where it may be the start of a text that
/// the reader must not see.
#[derive(Clone, Debug, Default)]
pub struct Tail {
    /// The continuation ends before any of these.
    stops: Vec<String>,
    /// Left out at the very end of a continuation.
    end: String,
    held: String,
}

impl Tail {
    pub fn new(stops: Vec<String>, end: String) -> Self {
        Tail { stops, end, held: String::new() }
    }

    /// Takes text; returns what the reader may see now, and whether a stop text has ended it.
    pub fn push(&mut self, text: &str) -> (String, bool) {
        self.held.push_str(text);
        let found = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min();
        if let Some(at) = found {
            let mut text = std::mem::take(&mut self.held);
            text.truncate(at);
            return (text, true);
        }
        let may_go_on =
            |rest: &str| self.end.starts_with(rest) || self.stops.iter().any(|stop| stop.starts_with(rest));
        let mut places = self.held.char_indices().map(|(at, _)| at);
        let at = places.find(|&at| may_go_on(&self.held[at..])).unwrap_or(self.held.len());
        let held = self.held.split_off(at);
        (std::mem::replace(&mut self.held, held), false)
    }

    /// Returns the rest; `by_itself` if the model has ended the text.
    pub fn finish(&mut self, by_itself: bool) -> String {
        let mut text = std::mem::take(&mut self.held);
        if by_itself && text.ends_with(&self.end) {
            text.truncate(text.len() - self.end.len());
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The pieces that a client sees, and whether a stop text ended them.
    fn seen(stops: &[&str], end: &str, pieces: &[&str], by_itself: bool) -> (Vec<String>, bool) {
        let mut tail = Tail::new(stops.iter().map(|&stop| stop.to_owned()).collect(), end.to_owned());
        let mut seen = Vec::new();
        for piece in pieces {
            let (text, stopped) = tail.push(piece);
            seen.push(text);
            if stopped {
                return (seen, true);
            }
        }
        seen.push(tail.finish(by_itself));
        (seen, false)
    }

    #[test]
    fn no_part_of_a_stop_text_is_seen() {
        for (stops, pieces, expected, stopped) in [
            (&["END"][..], &["a E", "ND b"][..], &["a ", ""][..], true),
            (&["END"], &["a E", "N", "X"], &["a ", "", "ENX", ""], false),
            (&["END"], &["EEN", "D"], &["E", ""], true),
            (&["b", "ab"], &["xa", "b"], &["x", ""], true),
            (&["\n\n"], &["a\n", "b\n", "\nc"], &["a", "\nb", ""], true),
            (&["\n"], &["a", "\n"], &["a", ""], true),
            (&["é!"], &["caf", "é", "!"], &["caf", "", ""], true),
            (&["é!"], &["é", "é", "?"], &["", "é", "é?", ""], false),
            (&["aab"], &["a", "a", "a", "b"], &["", "", "a", ""], true),
            (&["END"], &["x EN"], &["x ", "EN"], false),
        ] {
            let expected: Vec<String> = expected.iter().map(|&text| text.to_owned()).collect();
            assert_eq!(seen(stops, "", pieces, false), (expected, stopped), "{stops:?} {pieces:?}");
        }
    }

    #[test]
    fn the_end_of_an_answer_is_left_out_at_the_end_alone() {
        let text = |pieces: &[&str], by_itself| seen(&[], "\n", pieces, by_itself).0.concat();
        assert_eq!(text(&["a\n", "b", "\n"], true), "a\nb");
        assert_eq!(text(&["a\n", "b", "\n"], false), "a\nb\n");
        assert_eq!(text(&["a", "\n", "\n"], true), "a\n");
        assert_eq!(text(&["a"], true), "a");
    }
}
