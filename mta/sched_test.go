package mta

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tradewind-mta/tradewind/message"
	"github.com/tradewind-mta/tradewind/store"
)

// fakeQueues are queues of which only the lengths matter.
type fakeQueues struct {
	s    sched
	left map[store.QueueKey]int
	now  time.Time
	size func(*entry) int // recipients per transaction; nil: 1
}

func newFakeQueues(weights map[string]int) *fakeQueues {
	f := &fakeQueues{left: map[store.QueueKey]int{}, now: time.Date(2026, 11, 2, 8, 0, 0, 0, time.UTC)}
	f.s.weight = func(tenant string) int { return weights[tenant] }
	f.s.share = func(_, campaign string) int { return weights[campaign] }
	return f
}

func (f *fakeQueues) add(key store.QueueKey, n int) {
	if f.left[key] == 0 {
		f.s.push(&entry{key: key})
	}
	f.left[key] += n
}

// serve sends from the queue whose turn it is; false when none has any.
func (f *fakeQueues) serve() (key store.QueueKey, n int, ok bool) {
	e, _ := f.s.pop(f.now)
	if e == nil {
		return key, 0, false
	}
	n = 1
	if f.size != nil {
		n = f.size(e)
	}
	n = min(n, f.left[e.key])
	f.s.charge(&e.key, n)
	f.left[e.key] -= n
	if f.left[e.key] > 0 {
		f.s.push(e)
	}
	return e.key, n, true
}

func TestTenantsShareByWeight(t *testing.T) {
	t.Parallel()
	for name, size := range map[string]func(*entry) int{
		"one recipient each": nil,
		"of different sizes": func(e *entry) int { return map[string]int{"a": 1, "b": 7, "c": 50}[e.key.Tenant] },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			weights := map[string]int{"a": 1, "b": 2, "c": 5}
			f := newFakeQueues(weights)
			f.size = size
			for tenant := range weights {
				for q := range 3 {
					f.add(store.QueueKey{Tenant: tenant, Campaign: fmt.Sprint(q)}, 1_000_000)
				}
			}
			sent := map[string]int{}
			for total := 0; total < 80_000; {
				key, n, _ := f.serve()
				sent[key.Tenant] += n
				total += n
			}
			for tenant, w := range weights {
				want := 10_000 * w
				if d := sent[tenant] - want; d < -want/50 || d > want/50 {
					t.Errorf("tenant %s sent %d, want %d within 2%%", tenant, sent[tenant], want)
				}
			}
		})
	}
}

func TestWeightsHoldOverManyOneMessageQueuesOfASite(t *testing.T) {
	t.Parallel()
	f := newFakeQueues(map[string]int{"heavy": 100, "light": 1})
	for i := range 10_000 {
		f.add(store.QueueKey{Tenant: "heavy", Campaign: fmt.Sprint(i)}, 1)
		f.add(store.QueueKey{Tenant: "light", Campaign: fmt.Sprint(i)}, 1)
	}
	sent := map[string]int{}
	for range 10_100 {
		key, _, _ := f.serve()
		sent[key.Tenant]++
	}
	if n := sent["heavy"]; n < 9_800 || n > 10_000 {
		t.Errorf("the heavy tenant had %d of 10,100, want 10,000 within 2%%", n)
	}
}

func TestSmallTenantDoesNotWaitBehindAMillion(t *testing.T) {
	t.Parallel()
	f := newFakeQueues(nil)
	for i := range 100 {
		f.add(store.QueueKey{Tenant: "big", Domain: fmt.Sprint(i)}, 10_000)
	}
	for range 1000 {
		f.serve() // under way when the small one comes
	}
	f.add(store.QueueKey{Tenant: "small"}, 100)
	turns, sent := 0, 0
	for ; sent < 100; turns++ {
		if key, n, _ := f.serve(); key.Tenant == "small" {
			sent += n
		}
	}
	if turns > 240 {
		t.Errorf("100 messages took %d turns, want at most 1.2 x the fair 200", turns)
	}
}

func TestUrgentMailGoesFirstWithinItsTenantOnly(t *testing.T) {
	t.Parallel()
	f := newFakeQueues(nil)
	f.add(store.QueueKey{Tenant: "a", Class: message.Bulk}, 100)
	f.add(store.QueueKey{Tenant: "b", Class: message.Bulk}, 100)
	f.add(store.QueueKey{Tenant: "a", Class: message.Transactional}, 20)
	var order string
	for range 60 {
		key, _, _ := f.serve()
		if key.Tenant == "a" {
			order += key.Class.String()[:1]
		}
	}
	// a has half of the turns, and its urgent mail is the first of them.
	if want := "tttttttttttttttttttt" + "bbbbbbbbbb"; order != want {
		t.Errorf("tenant a sent %s, want %s", order, want)
	}
}

func TestCampaignsOfATenantTakeTurns(t *testing.T) {
	t.Parallel()
	f := newFakeQueues(nil)
	for d := range 50 { // a campaign with many queues has no more for it
		f.add(store.QueueKey{Tenant: "a", Campaign: "wide", Domain: fmt.Sprint(d)}, 10)
	}
	f.add(store.QueueKey{Tenant: "a", Campaign: "narrow"}, 500)
	sent := map[string]int{}
	for range 200 {
		key, _, _ := f.serve()
		sent[key.Campaign]++
	}
	if d := cmp.Diff(map[string]int{"wide": 100, "narrow": 100}, sent); d != "" {
		t.Errorf("turns of campaigns (-want +got):\n%s", d)
	}
}

// TestSharesAreEvenAtEveryInstant has mail of tenants and campaigns come and go at
// random, in transactions of all sizes. As long as two of them have mail, neither
// ever gets further ahead of the other, in proportion to their weights, than a turn
// and a transaction of each; so nobody starves.
func TestSharesAreEvenAtEveryInstant(t *testing.T) {
	t.Parallel()
	const largest = 100 // recipients of a transaction
	for seed := range uint64(30) {
		r := rand.New(rand.NewPCG(seed, 9))
		weights := map[string]int{}
		names := func(prefix string, n int) (list []string) {
			for i := range n {
				list = append(list, fmt.Sprint(prefix, i))
				weights[list[i]] = 1 + r.IntN(9)
			}
			return list
		}
		tenants, campaigns := names("t", 2+r.IntN(3)), names("c", 2+r.IntN(4))
		f := newFakeQueues(weights)
		f.size = func(*entry) int { return 1 + r.IntN(largest)/(1+r.IntN(largest)) }
		sent, left := map[string]int{}, map[string]int{}
		ahead := map[string][2]float64{} // least and most while both have mail
		groups := map[string][]string{"tenants": tenants}
		name := func(key *store.QueueKey) string { return fmt.Sprint(key.Tenant, " ", key.Class, " ", key.Campaign) }
		for _, tenant := range tenants {
			for class := range message.Class(2) {
				group := fmt.Sprint(tenant, " ", class)
				for _, c := range campaigns {
					full := name(&store.QueueKey{Tenant: tenant, Class: class, Campaign: c})
					groups[group] = append(groups[group], full)
					weights[full] = weights[c]
				}
			}
		}
		for step := range 20_000 {
			if r.IntN(40) == 0 {
				key := store.QueueKey{
					Tenant: tenants[r.IntN(len(tenants))], Campaign: campaigns[r.IntN(len(campaigns))],
					Class: message.Class(r.IntN(2)), Domain: fmt.Sprint(r.IntN(3)),
				}
				n := 1 + r.IntN(400)
				f.add(key, n)
				left[key.Tenant] += n
				left[name(&key)] += n
			}
			key, n, ok := f.serve()
			if !ok {
				continue
			}
			for _, who := range []string{key.Tenant, name(&key)} {
				sent[who] += n
				left[who] -= n
			}
			for group, members := range groups {
				for i, a := range members {
					for _, b := range members[:i] {
						pair := group + ": " + a + ", " + b
						if left[a] == 0 || left[b] == 0 {
							delete(ahead, pair)
							continue
						}
						by := float64(sent[a])/float64(weights[a]) - float64(sent[b])/float64(weights[b])
						span, known := ahead[pair]
						if !known {
							span = [2]float64{by, by}
						}
						span = [2]float64{min(span[0], by), max(span[1], by)}
						ahead[pair] = span
						most := quantum + largest/float64(weights[a]) + largest/float64(weights[b])
						if got := span[1] - span[0]; got > most {
							t.Fatalf("seed %d, step %d: %s: %.1f ahead for each weight, want at most %.1f", seed, step, pair, got, most)
						}
					}
				}
			}
		}
	}
}

func TestRefusedPermitCostsNoTurn(t *testing.T) {
	t.Parallel()
	f := newFakeQueues(nil)
	f.add(store.QueueKey{Tenant: "a"}, 1000)
	f.add(store.QueueKey{Tenant: "b"}, 1000)
	sent := map[string]int{}
	for i := range 1000 {
		key, n, _ := f.serve()
		if key.Tenant == "a" && i%3 == 0 {
			f.s.refund(&key, n) // its permit was refused: the message went back
			f.left[key] += n
			continue
		}
		sent[key.Tenant] += n
	}
	if d := sent["a"] - sent["b"]; d < -30 || d > 30 {
		t.Errorf("sent %v, want equal shares", sent)
	}
}

func TestHeldEntriesComeBackAtTheirTimeAndCostNothingMeanwhile(t *testing.T) {
	t.Parallel()
	f := newFakeQueues(nil)
	for i := range 5 {
		e := &entry{key: store.QueueKey{Tenant: fmt.Sprint(i)}}
		f.left[e.key] = 1
		f.s.hold(e, f.now.Add(time.Duration(5-i)*time.Minute), "rate")
	}
	e, next := f.s.pop(f.now)
	if e != nil || !next.Equal(f.now.Add(time.Minute)) {
		t.Fatalf("popped %v, next at %v; want nothing before a minute", e, next)
	}
	for want := range 5 {
		f.now = f.now.Add(time.Minute)
		e, _ := f.s.pop(f.now)
		if e == nil || e.key.Tenant != fmt.Sprint(4-want) {
			t.Fatalf("after %d minutes: %v, want tenant %d", want+1, e, 4-want)
		}
		if again, _ := f.s.pop(f.now); again != nil {
			t.Fatalf("after %d minutes a second one: %v", want+1, again.key)
		}
	}
}

// TestOneOfEachKindIsLetInWhenASlotIsFree releases waiting entries: one of each
// subject, in the order they came, on trial.
func TestOneOfEachKindIsLetInWhenASlotIsFree(t *testing.T) {
	t.Parallel()
	f := newFakeQueues(nil)
	for i := range 3 {
		for _, tenant := range []string{"a", "b"} {
			f.s.wait(&entry{key: store.QueueKey{Tenant: tenant, Domain: fmt.Sprint(i)}, dead: tenant == "b" && i == 0}, "tenant", tenant)
		}
	}
	stopped := &entry{key: store.QueueKey{Tenant: "c"}}
	f.s.stop(stopped, "suspended")
	var got []string
	for round := range 4 {
		f.s.release()
		for e, _ := f.s.pop(f.now); e != nil; e, _ = f.s.pop(f.now) {
			if !e.trial {
				t.Errorf("%v is not on trial", e.key)
			}
			got = append(got, fmt.Sprintf("%d %s %s", round, e.key.Tenant, e.key.Domain))
		}
	}
	f.s.resume()
	if e, _ := f.s.pop(f.now); e != stopped || e.trial {
		t.Errorf("resume brought %v", e)
	}
	want := map[string]bool{"0 a 0": true, "0 b 1": true, "1 a 1": true, "1 b 2": true, "2 a 2": true}
	for _, g := range got {
		if !want[g] {
			t.Errorf("%q came out of turn", g)
		}
	}
	if len(got) != len(want) {
		t.Errorf("got %q, want each of %v", got, want)
	}
}

// TestEntryThatNobodyCanServeLetsOthersPass keeps a tenant whose lanes are all
// busy from standing in the way.
func TestEntryThatNobodyCanServeLetsOthersPass(t *testing.T) {
	t.Parallel()
	f := newFakeQueues(nil)
	f.add(store.QueueKey{Tenant: "a"}, 10)
	f.add(store.QueueKey{Tenant: "b"}, 10)
	seen := map[string]int{}
	for range 4 {
		e, _ := f.s.pop(f.now)
		seen[e.key.Tenant]++
		f.s.pass(e)
	}
	if d := cmp.Diff(map[string]int{"a": 2, "b": 2}, seen); d != "" {
		t.Errorf("looked at (-want +got):\n%s", d)
	}
}
