package mx

import (
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strings"
)

const maxSite = 255

// SiteOf names the set of mail hosts, so that all domains with the same MX
// hosts, in whatever order, spelling or preference, share one name and with it
// their limits. Different sets have different names. The name has at most 255
// octets out of letters, digits and "-.()|,[]:~".
//
// The rule: hosts are folded to lower case without final dot, sorted, and each
// taken once. Those that agree in the last two labels form a group. A group of
// one is written as it is; a larger one as its longest common suffix of whole
// labels, preceded by what differs, sorted, in brackets, where the host that
// is the suffix itself leaves an empty place. Groups are sorted by suffix and
// joined by commas:
//
//	mx.example.com                                  mx.example.com
//	mx1.example.com, mx2.example.com                (mx1|mx2).example.com
//	gmail-smtp-in.l.google.com, alt1.gmail-smtp-…   (|alt1).gmail-smtp-in.l.google.com
//	a.example.com, b.example.com, c.example.net     (a|b).example.com,c.example.net
//
// A longer name is cut to 238 octets, then "~" and the first 16 hexadecimal
// digits of the SHA-256 of the whole. No hosts have the empty name.
func SiteOf(hosts []string) string {
	names := make([]string, 0, len(hosts))
	for _, h := range hosts {
		names = append(names, canonical(h))
	}
	slices.Sort(names)
	names = slices.Compact(names)

	groups := make(map[string][]string)
	for _, n := range names {
		tail := n[tailStart(n):]
		groups[tail] = append(groups[tail], n)
	}
	var parts []string
	for _, g := range groups {
		parts = append(parts, compress(g))
	}
	slices.SortFunc(parts, func(a, b string) int {
		return strings.Compare(a[strings.IndexByte(a, ')')+1:]+a, b[strings.IndexByte(b, ')')+1:]+b)
	})
	site := strings.Join(parts, ",")
	if len(site) <= maxSite {
		return site
	}
	sum := sha256.Sum256([]byte(site))
	return site[:maxSite-17] + "~" + hex.EncodeToString(sum[:8])
}

// tailStart is where the last two labels of name begin.
func tailStart(name string) int {
	dot := strings.LastIndexByte(name, '.')
	if dot < 0 {
		return 0
	}
	return strings.LastIndexByte(name[:dot], '.') + 1
}

// compress writes sorted, distinct names that agree in their last two labels.
func compress(names []string) string {
	if len(names) == 1 {
		return names[0]
	}
	suffix := names[0]
	for _, n := range names[1:] {
		for suffix != n && !strings.HasSuffix(n, "."+suffix) {
			suffix = suffix[strings.IndexByte(suffix, '.')+1:]
		}
	}
	heads := make([]string, len(names))
	for i, n := range names {
		heads[i] = strings.TrimSuffix(strings.TrimSuffix(n, suffix), ".")
	}
	slices.Sort(heads)
	return "(" + strings.Join(heads, "|") + ")." + suffix
}
