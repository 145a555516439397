package bounce

import (
	"strings"

	"github.com/tradewind-mta/tradewind/message"
)

// maxRecipients bounds the recipients of one report.
const maxRecipients = 1000

// statusGroup is the fields about one recipient.
type statusGroup struct {
	original, final, actual string
	action, status          string
	remoteMTA               string
	diagnostics             []string
	extra                   string // a reason in a field of the sender's own
}

func (g *statusGroup) empty() bool {
	return g.final == "" && g.original == "" && g.action == "" && g.status == "" && len(g.diagnostics) == 0
}

// statusReport is a message/delivery-status (RFC 3464, 2), or the same fields
// found in running text.
type statusReport struct {
	reportingMTA string
	envelopeID   string
	groups       []statusGroup
}

// readStatus reads the fields of a delivery status. Groups end at a blank line
// or where a field comes again, because many servers forget the blank line and
// some put one inside a group.
func readStatus(text string) statusReport {
	var r statusReport
	var g statusGroup
	flush := func() {
		if !g.empty() && len(r.groups) < maxRecipients {
			r.groups = append(r.groups, g)
		}
		g = statusGroup{}
	}
	for text != "" {
		var line string
		line, text, _ = strings.Cut(text, "\n")
		if strings.TrimSpace(line) == "" {
			if g.final != "" || g.original != "" {
				flush()
			}
			continue
		}
		name, value, ok := strings.Cut(line, ":")
		if !ok || strings.ContainsAny(strings.TrimSpace(name), " \t<>@") {
			continue
		}
		value = strings.TrimSpace(value)
		for text != "" && (text[0] == ' ' || text[0] == '\t') {
			var more string
			more, text, _ = strings.Cut(text, "\n")
			if strings.TrimSpace(more) == "" {
				break
			}
			if len(value) < 4000 {
				value += " " + strings.TrimSpace(more)
			}
		}
		switch name = strings.ToLower(strings.TrimSpace(name)); name {
		case "reporting-mta":
			r.reportingMTA = afterType(value)
		case "original-envelope-id":
			r.envelopeID = value
		case "final-recipient":
			if g.final != "" {
				flush()
			}
			g.final = value
		case "original-recipient":
			if g.original != "" {
				flush()
			}
			g.original = value
		case "x-actual-recipient", "x-actual-recipient-address":
			g.actual = value
		case "action":
			if g.action != "" && g.final != "" {
				flush()
			}
			g.action = value
		case "status":
			if g.status != "" && g.final != "" {
				flush()
			}
			g.status = value
		case "remote-mta":
			g.remoteMTA = afterType(value)
		case "diagnostic-code":
			if len(g.diagnostics) < 8 {
				g.diagnostics = append(g.diagnostics, value)
			}
		case "x-notes", "x-supplementary-info", "x-mimecast-bounce-reason", "x-display-name", "x-postfix-reason", "smtp-remote-recipient-reason", "x-powermta-bouncecategory":
			if name != "x-display-name" && name != "x-powermta-bouncecategory" {
				g.extra = value
			}
		}
	}
	flush()
	return r
}

// afterType drops the type of a typed field, "dns; host" (RFC 3464, 2.1.2).
func afterType(v string) string {
	if _, after, ok := strings.Cut(v, ";"); ok {
		v = after
	}
	v = strings.TrimSpace(v)
	if i := strings.IndexAny(v, " \t("); i > 0 {
		v = v[:i]
	}
	return strings.TrimSuffix(strings.Trim(v, "[]<>"), ".")
}

// diagnosticWords strips the type of a Diagnostic-Code; unknown types and none
// are common.
func diagnosticWords(v string) string {
	kind, after, ok := strings.Cut(v, ";")
	if ok && len(kind) < 24 && !strings.ContainsAny(strings.TrimSpace(kind), " \t<@:") {
		return strings.TrimSpace(after)
	}
	return v
}

// address chooses what to call the recipient: the final address when it is one,
// else the original. xtext is undone for the two bytes it must hide in an
// address, because some servers copy ORCPT as it came (RFC 3461, 4.2).
func (g *statusGroup) address() (address, original string) {
	original = addressIn(g.original)
	if strings.Contains(original, "+2B") || strings.Contains(original, "+3D") {
		original = strings.NewReplacer("+2B", "+", "+3D", "=").Replace(original)
	}
	final := ""
	// A source route or a path names a machine's insides, not a mailbox.
	if value := afterTypeWhole(g.final); !strings.HasPrefix(value, "@") && !strings.ContainsAny(value, "|") && !strings.HasPrefix(value, "/") {
		final = addressIn(g.final)
		if at := strings.LastIndexByte(final, '@'); at >= 0 && !strings.Contains(final[at:], ".") && original != "" {
			final = ""
		}
		if isWrapped(final) {
			// The name of a directory entry, dressed up as an address.
			final = ""
		}
	}
	if final == "" && original == "" {
		final = addressIn(g.actual)
	}
	if final == "" {
		return original, ""
	}
	if strings.EqualFold(final, original) {
		return final, ""
	}
	return final, original
}

// isWrapped reports an X.400 or X.500 name that Exchange made into an address,
// as in IMCEAEX-_O=CORP_OU=FIRST_CN=RECIPIENTS_CN=ALICE@example.org.
func isWrapped(address string) bool {
	return len(address) > 8 && strings.EqualFold(address[:5], "IMCEA") && strings.IndexByte(address[:min(len(address), 14)], '-') > 0
}

func afterTypeWhole(v string) string {
	if _, after, ok := strings.Cut(v, ";"); ok {
		v = after
	}
	return strings.TrimLeft(strings.TrimSpace(v), "<")
}

func readAction(s string) Action {
	s = strings.ToLower(strings.TrimSpace(s))
	for _, a := range []Action{ActionFailed, ActionDelayed, ActionDelivered, ActionRelayed, ActionExpanded} {
		if strings.HasPrefix(s, string(a)) {
			return a
		}
	}
	switch {
	case strings.HasPrefix(s, "fail"), strings.HasPrefix(s, "error"), strings.HasPrefix(s, "expired"), strings.HasPrefix(s, "reject"), strings.HasPrefix(s, "undeliver"):
		return ActionFailed
	case strings.HasPrefix(s, "deferred"), strings.HasPrefix(s, "delay"), strings.HasPrefix(s, "warn"):
		return ActionDelayed
	case strings.HasPrefix(s, "deliverable"), strings.HasPrefix(s, "sent"):
		return ActionDelivered
	}
	return ""
}

// readStatusCode reads the Status field, comments and all.
func readStatusCode(s string) message.Enhanced {
	for i := range len(s) {
		if i > 0 && isWordByte(s[i-1]) {
			continue
		}
		if e, n := enhancedAt(s, i); n > 0 {
			return e
		}
	}
	return message.Enhanced{}
}

// fromStatus turns the groups of a report into recipients. Where a group gives no
// reason, it is looked for in the part for people.
func (p *parser) fromStatus(r statusReport) {
	if p.report.ReportingMTA == "" {
		p.report.ReportingMTA, p.report.EnvelopeID = r.reportingMTA, r.envelopeID
	}
	for i := range r.groups {
		g := &r.groups[i]
		address, original := g.address()
		if address == "" {
			address = p.onlyRecipient()
			if address == "" && len(r.groups) > 1 {
				continue
			}
		}
		action := readAction(g.action)
		status := readStatusCode(g.status)
		if action == "" {
			switch status[0] {
			case 4:
				action = ActionDelayed
			case 2:
				action = ActionDelivered
			default:
				action = ActionFailed
			}
			if action == ActionDelayed && !p.saysDelayed() {
				action = ActionFailed
			}
		}
		w := g.words()
		vague := w.full == "" || w.code == 0 && status[1]+status[2] == 0 && w.enhanced == (message.Enhanced{})
		if vague && action != ActionDelivered {
			if better := p.wordsIn(address, len(r.groups) == 1 && w.full == ""); better != "" {
				b := readWords(better)
				if w.full == "" || b.code != 0 || b.enhanced != (message.Enhanced{}) {
					w = b
				}
			}
		}
		// The server's own code tells more than the class put on it; but a
		// status with a subject beats a diagnostic without one.
		if w.enhanced == (message.Enhanced{}) || w.enhanced[1]+w.enhanced[2] == 0 && status[1]+status[2] > 0 {
			if status != (message.Enhanced{}) {
				w.enhanced = status
			}
		}
		w.unproven = w.unproven && status[1]+status[2] == 0
		if original == "" {
			original = p.mailedAs(address)
		}
		p.add(w, Recipient{Address: address, Original: original, Action: action, RemoteMTA: g.remoteMTA}, 90)
	}
}

// words picks the diagnostic of a group that says most.
func (g *statusGroup) words() words {
	var best words
	for _, d := range g.diagnostics {
		text := diagnosticWords(d)
		w := readWords(text)
		w.unproven = text == d && w.code == 0 && w.enhanced == (message.Enhanced{})
		if best.full == "" || best.code == 0 && w.code != 0 || best.enhanced == (message.Enhanced{}) && w.enhanced != (message.Enhanced{}) && w.code >= best.code {
			best = w
		}
	}
	if best.full == "" && g.extra != "" {
		best = readWords(g.extra)
	}
	if best.full == "" {
		// "Status: 5.4.4 (Illegal host/domain name found)"
		if _, comment, ok := strings.Cut(g.status, "("); ok {
			best = readWords(strings.TrimSuffix(strings.TrimSpace(comment), ")"))
		}
	}
	return best
}
