package main

import (
	"fmt"
	"html"
	"strings"
)

// plot is one picture of the report.
type plot struct {
	name, title string
	svg         []byte
}

// bar is one bar of a picture.
type bar struct {
	label string
	value spread
	dark  bool
}

// plots are drawn from what was measured; there is none of what was not.
func (r *report) plots() (list []plot) {
	var cost, rate, accept []bar
	for _, c := range r.cells {
		for _, name := range r.order {
			samples := r.of(c.name, name)
			if len(samples) == 0 {
				continue
			}
			label, dark := c.what+", "+name, name == nameTradewind
			cost = append(cost, bar{label, collect(samples, (*sample).cpu), dark})
			rate = append(rate, bar{label, collect(samples, (*sample).rate), dark})
			accept = append(accept, bar{label, collect(samples, func(s *sample) float64 { return 1000 * s.Accept.P99 }), dark})
		}
	}
	add := func(name, title, unit string, bars []bar) {
		if len(bars) > 0 {
			list = append(list, plot{name, title, drawBars(title, unit, bars)})
		}
	}
	add("cpu.svg", "CPU a message, by cell and relay", "µs", cost)
	add("rate.svg", "Messages a second, by cell and relay", "", rate)
	add("accept.svg", "Answer to the message, 99th percentile, with "+fmt.Sprint(connections)+" connections that never pause", "ms", accept)
	var flat []bar
	for _, f := range r.Findings {
		if f.Name == "volume" || f.Name == "domains" {
			v := f.Values["cpu_us"]
			flat = append(flat, bar{f.What, spread{v, v, v}, true})
		}
	}
	add("flat.svg", "CPU a message, by volume and by number of domains", "µs", flat)
	return list
}

// drawBars draws horizontal bars on a scale from zero, with a line from the
// least to the most of the rounds.
func drawBars(title, unit string, bars []bar) []byte {
	const left, width, right, row, top = 300, 480, 110, 18, 36
	most := 0.0
	for _, b := range bars {
		most = max(most, b.value.most)
	}
	if most == 0 {
		most = 1
	}
	x := func(v float64) float64 { return left + v/most*width }
	var s strings.Builder
	height := top + row*len(bars) + 8
	fmt.Fprintf(&s, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" font-family="sans-serif" font-size="11">`+"\n", left+width+right, height, left+width+right, height)
	fmt.Fprintf(&s, `<rect width="100%%" height="100%%" fill="#fff"/>`+"\n"+`<text x="8" y="20" font-size="14">%s</text>`+"\n", html.EscapeString(title))
	for i, b := range bars {
		y := top + i*row
		fill := "#b8c4ce"
		if b.dark {
			fill = "#1f6f8b"
		}
		fmt.Fprintf(&s, `<text x="%d" y="%d" text-anchor="end">%s</text>`, left-6, y+12, html.EscapeString(b.label))
		fmt.Fprintf(&s, `<rect x="%d" y="%d" width="%.1f" height="%d" fill="%s"/>`, left, y+2, x(b.value.median)-left, row-5, fill)
		fmt.Fprintf(&s, `<path d="M%.1f %d H%.1f" stroke="#333"/>`, x(b.value.least), y+row/2, x(b.value.most))
		fmt.Fprintf(&s, `<text x="%.1f" y="%d">%s</text>`+"\n", x(b.value.most)+5, y+12, html.EscapeString(strings.TrimSpace(fmt.Sprintf("%.4g %s", b.value.median, unit))))
	}
	s.WriteString("</svg>\n")
	return []byte(s.String())
}
