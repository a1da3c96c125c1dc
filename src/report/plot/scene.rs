//! A picture as a list of shapes, independent of the file format.

/// Red, green, blue, and opacity in 0..=1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Color(pub u8, pub u8, pub u8, pub f64);

/// The palette of Okabe and Ito ("Color Universal Design", 2008), whose colors people with any
/// color vision can distinguish.
pub(super) const BLUE: Color = Color(0, 114, 178, 1.0);
pub(super) const ORANGE: Color = Color(213, 94, 0, 1.0);
pub(super) const GREEN: Color = Color(0, 158, 115, 1.0);
pub(super) const PURPLE: Color = Color(148, 76, 132, 1.0);
/// The colors of runs that are compared: the rest of the palette as well.
pub(super) const RUNS: [Color; 7] =
    [BLUE, ORANGE, GREEN, PURPLE, Color(230, 159, 0, 1.0), Color(86, 180, 233, 1.0), Color(60, 60, 60, 1.0)];
pub(super) const INK: Color = Color(38, 44, 52, 1.0);
pub(super) const FAINT: Color = Color(104, 112, 122, 1.0);
pub(super) const GRID: Color = Color(229, 232, 236, 1.0);
pub(super) const PAPER: Color = Color(255, 255, 255, 1.0);

impl Color {
    pub fn with_opacity(self, opacity: f64) -> Self {
        Self(self.0, self.1, self.2, opacity)
    }
}

/// The point of a text that is at its position.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Anchor {
    Start,
    Middle,
    End,
}

#[derive(Clone, Debug)]
pub(super) struct Text {
    pub x: f64,
    /// Height of the baseline.
    pub y: f64,
    pub size: f64,
    pub anchor: Anchor,
    pub color: Color,
    pub bold: bool,
    /// Whether the text runs from bottom to top.
    pub upright: bool,
    pub text: String,
}

impl Text {
    /// Returns a text of ordinary size and weight, from left to right.
    fn new(x: f64, y: f64, anchor: Anchor, color: Color, text: &str) -> Self {
        Self { x, y, size: 13.0, anchor, color, bold: false, upright: false, text: text.to_string() }
    }
}

#[derive(Clone, Debug)]
pub(super) enum Shape {
    Line { points: Vec<(f64, f64)>, width: f64, color: Color, dashed: bool },
    Rect { x: f64, y: f64, width: f64, height: f64, color: Color },
    Dot { x: f64, y: f64, radius: f64, color: Color },
    Text(Text),
}

pub(super) struct Scene {
    pub width: f64,
    pub height: f64,
    pub shapes: Vec<Shape>,
}

impl Scene {
    pub fn new(width: f64, height: f64) -> Self {
        let paper = Shape::Rect { x: 0.0, y: 0.0, width, height, color: PAPER };
        Self { width, height, shapes: vec![paper] }
    }

    pub fn line(&mut self, points: Vec<(f64, f64)>, width: f64, color: Color) {
        self.shapes.push(Shape::Line { points, width, color, dashed: false });
    }

    pub fn dashed(&mut self, points: Vec<(f64, f64)>, width: f64, color: Color) {
        self.shapes.push(Shape::Line { points, width, color, dashed: true });
    }

    pub fn dot(&mut self, (x, y): (f64, f64), radius: f64, color: Color) {
        self.shapes.push(Shape::Dot { x, y, radius, color });
    }

    pub fn text(&mut self, x: f64, y: f64, anchor: Anchor, color: Color, text: &str) {
        self.shapes.push(Shape::Text(Text::new(x, y, anchor, color, text)));
    }

    pub fn title(&mut self, x: f64, y: f64, size: f64, text: &str) {
        let text = Text { size, bold: true, ..Text::new(x, y, Anchor::Start, INK, text) };
        self.shapes.push(Shape::Text(text));
    }

    /// Adds a faint remark that ends at `x`.
    pub fn note(&mut self, x: f64, y: f64, text: &str) {
        self.text(x, y, Anchor::End, FAINT, text);
    }

    /// Adds the label of a vertical axis.
    pub fn upright(&mut self, x: f64, y: f64, text: &str) {
        let text = Text { upright: true, ..Text::new(x, y, Anchor::Middle, FAINT, text) };
        self.shapes.push(Shape::Text(text));
    }
}
