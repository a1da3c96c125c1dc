//! Paints a scene as PNG, with text in an embedded font.

use super::scene::{Anchor, Color, Scene, Shape, Text};
use anyhow::{Context, Result};
use tiny_skia::{
    FillRule, LineCap, LineJoin, Paint, PathBuilder, Pixmap, Rect, Stroke, StrokeDash, Transform,
};
use ttf_parser::{Face, GlyphId, OutlineBuilder};

/// Pixels per unit: sharp on dense screens and in print.
pub(super) const SCALE: f64 = 2.0;

pub(super) fn paint(scene: &Scene) -> Result<Vec<u8>> {
    let (width, height) = (scene.width * SCALE, scene.height * SCALE);
    let mut pixels = Pixmap::new(width as u32, height as u32).context("the plot is empty")?;
    let face = Face::parse(epaint_default_fonts::UBUNTU_LIGHT, 0).expect("the embedded font is sound");
    for shape in &scene.shapes {
        paint_shape(&mut pixels, &face, shape);
    }
    pixels.encode_png().context("cannot encode a plot as PNG")
}

fn paint_shape(pixels: &mut Pixmap, face: &Face, shape: &Shape) {
    let scale = Transform::from_scale(SCALE as f32, SCALE as f32);
    match shape {
        Shape::Line { points, width, color, dashed } => {
            let mut path = PathBuilder::new();
            for (i, &(x, y)) in points.iter().enumerate() {
                if i == 0 { path.move_to(x as f32, y as f32) } else { path.line_to(x as f32, y as f32) }
            }
            let dash = if *dashed { StrokeDash::new(vec![6.0, 4.0], 0.0) } else { None };
            let (line_cap, line_join) = (LineCap::Butt, LineJoin::Round);
            let stroke = Stroke { width: *width as f32, dash, line_cap, line_join, ..Stroke::default() };
            if let Some(path) = path.finish() {
                pixels.stroke_path(&path, &brush(*color), &stroke, scale, None);
            }
        }
        Shape::Rect { x, y, width, height, color } => {
            if let Some(rect) = Rect::from_xywh(*x as f32, *y as f32, *width as f32, *height as f32) {
                pixels.fill_rect(rect, &brush(*color), scale, None);
            }
        }
        Shape::Dot { x, y, radius, color } => {
            if let Some(path) = PathBuilder::from_circle(*x as f32, *y as f32, *radius as f32) {
                pixels.fill_path(&path, &brush(*color), FillRule::Winding, scale, None);
            }
        }
        Shape::Text(text) => paint_text(pixels, face, text, scale),
    }
}

fn paint_text(pixels: &mut Pixmap, face: &Face, text: &Text, scale: Transform) {
    let em = text.size as f32 / f32::from(face.units_per_em());
    let mut glyphs = Glyphs { path: PathBuilder::new(), x: 0.0 };
    for c in text.text.chars() {
        let glyph = face.glyph_index(c).unwrap_or(GlyphId(0));
        face.outline_glyph(glyph, &mut glyphs);
        glyphs.x += f32::from(face.glyph_hor_advance(glyph).unwrap_or(0));
    }
    let shift = match text.anchor {
        Anchor::Start => 0.0,
        Anchor::Middle => -glyphs.x / 2.0,
        Anchor::End => -glyphs.x,
    };
    let Some(path) = glyphs.path.finish() else { return };
    let turn = if text.upright { Transform::from_rotate(-90.0) } else { Transform::identity() };
    // Font units have their origin on the baseline and point up.
    let place = Transform::from_translate(shift, 0.0).post_scale(em, -em).post_concat(turn);
    let place = place.post_translate(text.x as f32, text.y as f32).post_concat(scale);
    let ink = brush(text.color);
    pixels.fill_path(&path, &ink, FillRule::Winding, place, None);
    // The font is light: a thin outline gives it a regular weight, and a thicker one a bold weight.
    let units = if text.bold { 0.055 } else { 0.02 } * f32::from(face.units_per_em());
    pixels.stroke_path(&path, &ink, &Stroke { width: units, ..Stroke::default() }, place, None);
}

fn brush(Color(r, g, b, opacity): Color) -> Paint<'static> {
    let mut paint = Paint { anti_alias: true, ..Paint::default() };
    paint.set_color_rgba8(r, g, b, (opacity * 255.0).round() as u8);
    paint
}

/// Collects the outlines of a line of text in font units.
struct Glyphs {
    path: PathBuilder,
    x: f32,
}

impl OutlineBuilder for Glyphs {
    fn move_to(&mut self, x: f32, y: f32) {
        self.path.move_to(self.x + x, y);
    }

    fn line_to(&mut self, x: f32, y: f32) {
        self.path.line_to(self.x + x, y);
    }

    fn quad_to(&mut self, x1: f32, y1: f32, x: f32, y: f32) {
        self.path.quad_to(self.x + x1, y1, self.x + x, y);
    }

    fn curve_to(&mut self, x1: f32, y1: f32, x2: f32, y2: f32, x: f32, y: f32) {
        self.path.cubic_to(self.x + x1, y1, self.x + x2, y2, self.x + x, y);
    }

    fn close(&mut self) {
        self.path.close();
    }
}
