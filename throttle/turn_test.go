package throttle

import (
	"fmt"
	"testing"
	"time"
)

// TestLanesThatKeepStepShareARate lets lanes ask again exactly when they are
// told to, always in the same order, one of them first. One of four loses
// interest half-way. The rate is used all the same, and by all alike.
func TestLanesThatKeepStepShareARate(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		limit string
		ask   func(*Lane, time.Time) Grant
		same  string // source of all lanes, if they have one
	}{
		{"provider_rate", func(l *Lane, now time.Time) Grant { return l.Send(now, Mail{}) }, ""},
		{"source_rate", func(l *Lane, now time.Time) Grant { return l.Send(now, Mail{}) }, "ip"},
		{"provider_connection_rate", func(l *Lane, now time.Time) Grant { return l.Connect(now, mxAddr) }, ""},
		{"source_connection_rate", func(l *Lane, now time.Time) Grant { return l.Connect(now, mxAddr) }, "ip"},
	} {
		for _, rate := range []string{"50/s", "10/min", "1000/s burst 7", "20/s\", \"1800/min"} {
			t.Run(c.limit+" "+rate, func(t *testing.T) {
				eng := engine(t, fmt.Sprintf("[provider.p]\nmx_suffix = [\".p.example\"]\n%s = [\"%s\"]\n", c.limit, rate))
				var lanes [4]*Lane
				var asks [4]time.Time
				var got [4]int
				for i := range lanes {
					source := c.same
					if source == "" {
						source = fmt.Sprintf("ip%d", i)
					}
					host := fmt.Sprintf("mx%d.p.example", i)
					lanes[i] = eng.Lane(Target{Source: source, Site: host, Hosts: []string{host}})
					asks[i] = epoch
				}
				r := lanes[0].Limits("").Value(map[string]Key{
					"provider_rate": KeyProviderRate, "source_rate": KeySourceRate,
					"provider_connection_rate": KeyProviderConnectionRate, "source_connection_rate": KeySourceConnectionRate,
				}[c.limit]).Rates[0]
				const n = 1000
				every := r.Per / time.Duration(r.N)
				half := epoch.Add(n / 2 * every)
				end := epoch.Add(n * every)
				polls := 0
				for {
					next := 0
					for i := range asks {
						if asks[i].Before(asks[next]) {
							next = i
						}
					}
					now := asks[next]
					if !now.Before(end) {
						break
					}
					if next == 3 && now.After(half) {
						asks[3] = end // it is in line still
						continue
					}
					polls++
					g := c.ask(lanes[next], now)
					switch {
					case g.OK:
						g.Release()
						got[next]++
					case !g.At.After(now):
						t.Fatalf("refused at %v until %v", now, g.At)
					default:
						asks[next] = g.At
					}
				}
				total := got[0] + got[1] + got[2] + got[3]
				if total < n*99/100 || total > n+int(r.Burst) {
					t.Errorf("%d permits, want %d", total, n)
				}
				for i, want := range []int{n/8 + n/6, n/8 + n/6, n/8 + n/6, n / 8} {
					if got[i] < want*9/10 || got[i] > want*11/10+int(r.Burst) {
						t.Errorf("lane %d has %d permits, want about %d", i, got[i], want)
					}
				}
				if polls > 12*n {
					t.Errorf("%d requests for %d permits", polls, total)
				}
			})
		}
	}
}

// TestNewRateEndsTheLineForTheOldOne: what lanes were told under a rate of one
// an hour holds nobody up under a better one.
func TestNewRateEndsTheLineForTheOldOne(t *testing.T) {
	t.Parallel()
	doc := "[provider.p]\nmx_suffix = [\".p.example\"]\nprovider_rate = \"%s\"\n"
	eng := engine(t, fmt.Sprintf(doc, "1/h"))
	a := eng.Lane(Target{Source: "ip1", Site: "a", Hosts: []string{"a.p.example"}})
	b := eng.Lane(Target{Source: "ip2", Site: "b", Hosts: []string{"b.p.example"}})
	notified := 0
	a.Notify(func(Freed) { notified++ })
	if g := a.Send(epoch, Mail{}); !g.OK {
		t.Fatal("the first was refused")
	}
	if g := a.Send(epoch, Mail{}); g.OK || g.At.Sub(epoch) < time.Hour {
		t.Fatalf("the second: %v until %v", g.OK, g.At)
	}
	eng.Reload(mustLoad(t, fmt.Sprintf(doc, "10/s")))
	if notified != 1 {
		t.Errorf("the lane that waits for the old rate was notified %d times, want once", notified)
	}
	g := b.Send(epoch.Add(time.Second), Mail{})
	if wait := g.At.Sub(epoch); g.OK || wait > 1200*time.Millisecond {
		t.Errorf("under the new rate: %v, wait %v", g.OK, wait)
	}
	if g = b.Send(g.At, Mail{}); !g.OK {
		t.Errorf("under the new rate: refused until %v", g.At)
	}
}
