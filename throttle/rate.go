package throttle

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// maxPerSecond bounds a rate: above it the rounding of the interval to whole
// nanoseconds would show.
const maxPerSecond = 1_000_000

// slack is how late a caller may come and still lose nothing: timers wake late
// by a few milliseconds on a busy machine, and without it each late wake-up
// would lower the rate for good. It is paid for by an interval longer by
// slack/Per (half a percent at most), so that N in any Per still holds.
const slack = 5 * time.Millisecond

// Rate is a limit of N per Per. In any half-open window of length Per at most
// N+Burst-1 are granted; Burst 1, the default, makes that exactly N. Pacing is
// smooth: a daily limit is spread over the day. The sustained rate lies within
// half a percent of N/Per.
type Rate struct {
	N     int64
	Per   time.Duration
	Burst int64 // how many may go at once after a pause, at least 1

	interval int64 // ns between two grants
	tau      int64 // ns by which a grant may come early
}

// NewRate returns the rate n per per with a burst of at least one. It is an
// error if n or per is not positive, per is above 31 days, or the rate is above
// a million per second.
func NewRate(n int64, per time.Duration, burst int64) (Rate, error) {
	switch {
	case n <= 0 || per <= 0:
		return Rate{}, fmt.Errorf("rate %d/%v is not positive", n, per)
	case per > 31*24*time.Hour:
		return Rate{}, fmt.Errorf("rate over %v: the longest period is 31 days", per)
	case float64(n) > maxPerSecond*per.Seconds():
		return Rate{}, fmt.Errorf("rate %d/%v is above %d per second", n, per, maxPerSecond)
	case burst < 1 || burst > n:
		return Rate{}, fmt.Errorf("burst %d is not between 1 and %d", burst, n)
	}
	late := lateness(per)
	r := Rate{N: n, Per: per, Burst: burst}
	// Rounded up: rounding down would let one too many into the window. The
	// burst was bounded by n, so tau stays below the longest period.
	r.interval = (int64(per) + late + n - 1) / n
	r.tau = (burst-1)*r.interval + late
	return r, nil
}

// lateness is how many nanoseconds late a caller may come under a rate over per.
func lateness(per time.Duration) int64 { return int64(min(slack, per/200)) }

// ParseRate reads "100/s", "5000/h", "1/90s" or "200/min burst 20". Units are
// s, min, h and d, or a Go duration.
func ParseRate(s string) (Rate, error) {
	bad := func() (Rate, error) {
		return Rate{}, fmt.Errorf("%q is not a rate such as \"100/s\" or \"5000/h burst 10\"", s)
	}
	head, tail, hasBurst := strings.Cut(strings.TrimSpace(s), " burst ")
	num, unit, ok := strings.Cut(head, "/")
	if !ok {
		return bad()
	}
	n, err := strconv.ParseInt(strings.TrimSpace(num), 10, 64)
	if err != nil {
		return bad()
	}
	per, err := parsePeriod(strings.TrimSpace(unit))
	if err != nil {
		return bad()
	}
	burst := int64(1)
	if hasBurst {
		if burst, err = strconv.ParseInt(strings.TrimSpace(tail), 10, 64); err != nil {
			return bad()
		}
	}
	return NewRate(n, per, burst)
}

func parsePeriod(unit string) (time.Duration, error) {
	switch unit {
	case "s", "sec", "second":
		return time.Second, nil
	case "m", "min", "minute":
		return time.Minute, nil
	case "h", "hour":
		return time.Hour, nil
	case "d", "day":
		return 24 * time.Hour, nil
	}
	return parseDuration(unit)
}

// parseDuration is time.ParseDuration with whole days ("2d") as well.
func parseDuration(s string) (time.Duration, error) {
	if days, ok := strings.CutSuffix(s, "d"); ok {
		n, err := strconv.ParseInt(days, 10, 32)
		if err != nil || n < 0 || n > 3650 {
			return 0, fmt.Errorf("%q is not a duration", s)
		}
		return time.Duration(n) * 24 * time.Hour, nil
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 {
		return 0, fmt.Errorf("%q is not a duration", s)
	}
	return d, nil
}

// String is the form that ParseRate reads.
func (r Rate) String() string {
	unit := r.Per.String()
	switch r.Per {
	case time.Second:
		unit = "s"
	case time.Minute:
		unit = "min"
	case time.Hour:
		unit = "h"
	case 24 * time.Hour:
		unit = "d"
	}
	s := strconv.FormatInt(r.N, 10) + "/" + unit
	if r.Burst > 1 {
		s += " burst " + strconv.FormatInt(r.Burst, 10)
	}
	return s
}

// PerSecond is the sustained rate.
func (r Rate) PerSecond() float64 {
	if r.Per <= 0 {
		return math.Inf(1)
	}
	return float64(r.N) / r.Per.Seconds()
}

// tat is the state of one rate: the theoretical arrival time of the generic
// cell rate algorithm, in nanoseconds since 1970. The zero value is a rate
// never used.
type tat int64

// next returns the earliest time at which n more fit under r; not after now
// means they fit at once. REQUIRES: n <= r.Burst, or they never fit.
func (t tat) next(r *Rate, n int64) int64 {
	return int64(t) + (n-1)*r.interval - r.tau
}

// take charges n at time now. REQUIRES: next was not after now.
func (t *tat) take(r *Rate, now, n int64) {
	*t = tat(max(int64(*t), now) + n*r.interval)
}
