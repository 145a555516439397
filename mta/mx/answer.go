package mx

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"

	"github.com/tradewind-mta/tradewind/message"
)

// found is what the servers said about a name, CNAMEs followed.
type found struct {
	nxdomain bool
	rrs      []dns.RR      // of the type asked for, under the last name of the chain
	ttl      time.Duration // the shortest on the way; of a negative answer, its SOA's
}

var (
	errCNAMELoop = errors.New("CNAME loop")
	errForeign   = errors.New("DNS answer holds only records of other names")
	errCNAMELong = fmt.Errorf("more than %d CNAMEs", maxCNAMEs)
)

// chain is the way from the name asked for to the one that holds records. A
// server may give it in one answer or in several.
type chain struct {
	names []string // the first is the name asked for; lower case, no final dot
	ttl   time.Duration
}

func newChain(name string) *chain {
	return &chain{names: []string{name}, ttl: 1<<31*time.Second - 1}
}

func (c *chain) last() string { return c.names[len(c.names)-1] }

func (c *chain) add(target string, ttl uint32) error {
	if slices.Contains(c.names, target) {
		return errCNAMELoop
	}
	if len(c.names) > maxCNAMEs {
		return errCNAMELong
	}
	c.names = append(c.names, target)
	c.shorten(ttl)
	return nil
}

func (c *chain) shorten(ttl uint32) {
	// RFC 2181, 8: a TTL with the top bit set counts as zero.
	if ttl > 1<<31-1 {
		ttl = 0
	}
	c.ttl = min(c.ttl, time.Duration(ttl)*time.Second)
}

// read takes from m what belongs to the question: records of type qtype whose
// owner is the name asked for or at the end of its CNAME chain. Records under
// any other name are ignored, so a server can speak only about what it was
// asked. again reports that the chain goes on beyond m and its last name must
// be asked for.
func (c *chain) read(m *dns.Msg, qtype uint16) (f found, again bool, err error) {
	answer := m.Answer[:min(len(m.Answer), maxRecords)]
	followed := false
	for {
		cname := findCNAME(answer, c.last())
		if cname == nil {
			break
		}
		if err := c.add(canonical(cname.Target), cname.Hdr.Ttl); err != nil {
			return found{}, false, err
		}
		followed = true
	}
	for _, rr := range answer {
		h := rr.Header()
		if h.Rrtype != qtype || h.Class != dns.ClassINET || canonical(h.Name) != c.last() {
			continue
		}
		f.rrs = append(f.rrs, rr)
		c.shorten(h.Ttl)
	}
	f.ttl = c.ttl
	if len(f.rrs) > 0 {
		return f, false, nil
	}
	// "None here" must not be read out of an answer about something else: it
	// would send mail to the wrong host, or nowhere.
	if c.foreign(answer) {
		return found{}, false, errForeign
	}
	f.nxdomain = m.Rcode == dns.RcodeNameError
	soa := findSOA(m.Ns)
	if soa == nil {
		// RFC 2308, 2.2: a NODATA answer carries the SOA. Without it, a chain
		// that ends in nothing is one the server did not follow to its end.
		return f, followed && !f.nxdomain, nil
	}
	// RFC 2308, 5: a negative answer lives for the lesser of the SOA's TTL and
	// its MINIMUM field.
	c.shorten(min(soa.Hdr.Ttl, soa.Minttl))
	f.ttl = c.ttl
	return f, false, nil
}

// foreign reports a record whose owner is not on the chain. A DNAME belongs
// there, under the parent of a name (RFC 6672, 3.1).
func (c *chain) foreign(rrs []dns.RR) bool {
	return slices.ContainsFunc(rrs, func(rr dns.RR) bool {
		return rr.Header().Rrtype != dns.TypeDNAME && !slices.Contains(c.names, canonical(rr.Header().Name))
	})
}

func findCNAME(rrs []dns.RR, owner string) *dns.CNAME {
	for _, rr := range rrs {
		if c, ok := rr.(*dns.CNAME); ok && c.Hdr.Class == dns.ClassINET && canonical(c.Hdr.Name) == owner {
			return c
		}
	}
	return nil
}

func findSOA(rrs []dns.RR) *dns.SOA {
	for _, rr := range rrs[:min(len(rrs), maxRecords)] {
		if soa, ok := rr.(*dns.SOA); ok {
			return soa
		}
	}
	return nil
}

// canonical is a DNS name in the form message.ParseDomain gives domains.
func canonical(name string) string {
	return strings.ToLower(strings.TrimSuffix(name, "."))
}

// mxHosts reads MX records into hosts sorted by preference and name, at most
// maxHosts, each once.
//
// null reports a null MX (RFC 7505): "." and no other target. A "." beside
// real hosts is malformed, and ignored: whoever publishes a mail host wants
// mail, and bouncing it could not be undone. bad counts targets that are not
// host names; a target such as 192.0.2.1 is one of those.
func mxHosts(rrs []dns.RR) (hosts []Host, null bool, bad int) {
	dots := 0
	for _, rr := range rrs {
		mx, ok := rr.(*dns.MX)
		if !ok {
			continue
		}
		if mx.Mx == "." {
			dots++
			continue
		}
		name, err := message.ParseDomain(strings.TrimSuffix(mx.Mx, "."))
		if err != nil || name[0] == '[' {
			bad++
			continue
		}
		hosts = append(hosts, Host{Name: name, Pref: mx.Preference})
	}
	slices.SortFunc(hosts, func(a, b Host) int {
		if a.Pref != b.Pref {
			return int(a.Pref) - int(b.Pref)
		}
		return strings.Compare(a.Name, b.Name)
	})
	seen := make(map[string]bool, len(hosts))
	hosts = slices.DeleteFunc(hosts, func(h Host) bool {
		dup := seen[h.Name]
		seen[h.Name] = true
		return dup
	})
	hosts = hosts[:min(len(hosts), maxHosts):min(len(hosts), maxHosts)]
	return hosts, dots > 0 && len(hosts) == 0 && bad == 0, bad
}

// hostAddrs reads A and AAAA records.
func hostAddrs(rrs []dns.RR) []netip.Addr {
	var addrs []netip.Addr
	for _, rr := range rrs {
		var a netip.Addr
		var ok bool
		switch rr := rr.(type) {
		case *dns.A:
			a, ok = netip.AddrFromSlice(rr.A.To4())
		case *dns.AAAA:
			// Not unmapped: an IPv4 address in an AAAA record must stay visible.
			a, ok = netip.AddrFromSlice(rr.AAAA.To16())
		}
		if ok && !slices.Contains(addrs, a) {
			addrs = append(addrs, a)
		}
	}
	return addrs
}
