//! Writes a scene as SVG.

use super::scene::{Anchor, Color, Scene, Shape, Text};
use std::fmt::Write;

pub(super) fn write(scene: &Scene) -> String {
    let (width, height) = (scene.width, scene.height);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\" font-family=\"Ubuntu, 'Segoe UI', Helvetica, Arial, sans-serif\">\n"
    );
    for shape in &scene.shapes {
        shape_to(&mut out, shape).expect("writing to a string cannot fail");
    }
    out.push_str("</svg>\n");
    out
}

fn shape_to(out: &mut String, shape: &Shape) -> std::fmt::Result {
    match shape {
        Shape::Line { points, width, color, dashed } => {
            out.push_str("<polyline points=\"");
            for (x, y) in points {
                write!(out, "{x:.1},{y:.1} ")?;
            }
            let dash = if *dashed { " stroke-dasharray=\"6 4\"" } else { "" };
            write!(out, "\" fill=\"none\" stroke-linejoin=\"round\" stroke-width=\"{width}\"{dash}")?;
            writeln!(out, "{}/>", paint("stroke", *color))
        }
        Shape::Rect { x, y, width, height, color } => {
            let fill = paint("fill", *color);
            writeln!(
                out,
                "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\"{fill}/>"
            )
        }
        Shape::Dot { x, y, radius, color } => {
            writeln!(out, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{radius}\"{}/>", paint("fill", *color))
        }
        Shape::Text(text) => text_to(out, text),
    }
}

fn text_to(out: &mut String, text: &Text) -> std::fmt::Result {
    let Text { x, y, size, anchor, color, bold, upright, text } = text;
    let anchor = match anchor {
        Anchor::Start => "start",
        Anchor::Middle => "middle",
        Anchor::End => "end",
    };
    write!(out, "<text x=\"{x:.1}\" y=\"{y:.1}\" font-size=\"{size}\" text-anchor=\"{anchor}\"")?;
    if *bold {
        out.push_str(" font-weight=\"bold\"");
    }
    if *upright {
        write!(out, " transform=\"rotate(-90 {x:.1} {y:.1})\"")?;
    }
    writeln!(out, "{}>{}</text>", paint("fill", *color), escape(text))
}

fn paint(attribute: &str, Color(r, g, b, opacity): Color) -> String {
    let solid = format!(" {attribute}=\"#{r:02x}{g:02x}{b:02x}\"");
    if opacity < 1.0 { format!("{solid} {attribute}-opacity=\"{opacity}\"") } else { solid }
}

/// Escapes a text for XML, which forbids control characters. Run names come from the file system
/// and may contain anything.
fn escape(text: &str) -> String {
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
