//go:build soak && linux

package interop

import (
	"fmt"
	"io"
	"math"
	"strings"
)

// series is one line of a plot; its values belong to the times of the plot.
type series struct {
	name, unit string
	values     []float64
}

// plot draws each series into a panel of its own, one above the other, over the
// seconds in at. marks are moments worth a line of their own.
func plot(w io.Writer, title string, at, marks []float64, list []series) error {
	const width, panel, left, right, top, gap = 900, 120, 70, 20, 40, 40
	height := top + len(list)*(panel+gap) + 10
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="12">`+"\n", width, height)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="white"/>`+"\n", width, height)
	fmt.Fprintf(&b, `<text x="%d" y="20" font-size="14">%s</text>`+"\n", left, title)
	end := at[len(at)-1]
	x := func(t float64) float64 { return left + (width-left-right)*t/end }
	for i, s := range list {
		y0 := float64(top + i*(panel+gap) + panel)
		most := 0.0
		for _, v := range s.values {
			most = math.Max(most, v)
		}
		if most == 0 {
			most = 1
		}
		y := func(v float64) float64 { return y0 - (panel-15)*v/most }
		fmt.Fprintf(&b, `<text x="%d" y="%.0f">%s</text>`+"\n", left, y0-panel+5, s.name)
		for _, share := range []float64{0, 0.5, 1} {
			v := most * share
			fmt.Fprintf(&b, `<line x1="%d" x2="%d" y1="%.1f" y2="%.1f" stroke="#ddd"/>`+"\n", left, width-right, y(v), y(v))
			fmt.Fprintf(&b, `<text x="%d" y="%.1f" text-anchor="end">%.0f%s</text>`+"\n", left-5, y(v)+4, v, s.unit)
		}
		for _, t := range marks {
			fmt.Fprintf(&b, `<line x1="%.1f" x2="%.1f" y1="%.1f" y2="%.1f" stroke="#c00" stroke-dasharray="3,3"/>`+"\n", x(t), x(t), y0, y0-panel+15)
		}
		b.WriteString(`<polyline fill="none" stroke="#06c" points="`)
		for k, v := range s.values {
			fmt.Fprintf(&b, "%.1f,%.1f ", x(at[k]), y(v))
		}
		b.WriteString(`"/>` + "\n")
	}
	fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="end">%.0f minutes; dashed: restarts</text>`+"\n", width-right, height-8, end/60)
	b.WriteString("</svg>\n")
	_, err := io.WriteString(w, b.String())
	return err
}
