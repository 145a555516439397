package bounce

import (
	"strings"

	"github.com/tradewind-mta/tradewind/message"
)

// Bounds on the text read for reasons.
const (
	maxLines     = 1500
	maxLineBytes = 2000
	maxWeak      = 20   // addresses without any sign that they failed
	maxRated     = 5000 // pieces of text weighed as reasons, for all recipients
)

// reportLine is one line of the report's text.
type reportLine struct {
	text, low string
	addresses []foundAddress
	rank      []rank // of each address
	blank     bool
}

// rank says how surely an address in a line is one that failed.
type rank uint8

const (
	rankNone   rank = iota // another party: sender, contact, message id
	rankWeak               // merely there
	rankReply              // in the words of a server that refused
	rankStrong             // named as the one that failed
	rankLine               // and alone on its line, as reports list them
)

// splitText cuts the report's text into lines, once.
func (p *parser) splitText() []reportLine {
	if p.lines == nil {
		p.lines = p.split(p.text)
	}
	return p.lines
}

// naming returns the indices of the lines that name address.
func (p *parser) naming(address string) []int {
	if p.index == nil {
		p.index = map[string][]int{}
		for i, l := range p.splitText() {
			for _, a := range l.addresses {
				key := strings.ToLower(a.text)
				if known := p.index[key]; len(known) == 0 || known[len(known)-1] != i {
					p.index[key] = append(known, i)
				}
			}
		}
	}
	return p.index[strings.ToLower(address)]
}

func (p *parser) split(text string) []reportLine {
	var lines []reportLine
	for text != "" && len(lines) < maxLines {
		var line string
		line, text, _ = strings.Cut(text, "\n")
		if len(line) > maxLineBytes {
			line = line[:maxLineBytes]
		}
		l := reportLine{text: strings.TrimRight(line, " \t"), low: strings.ToLower(line)}
		l.blank = strings.TrimSpace(line) == ""
		if len(l.low) != len(line) {
			l.low = asciiLower(line) // offsets must agree
		}
		l.addresses = findAddresses(line)
		for _, a := range l.addresses {
			l.rank = append(l.rank, p.rankOf(&l, a))
		}
		lines = append(lines, l)
	}
	return lines
}

func asciiLower(s string) string {
	b := []byte(s)
	for i, c := range b {
		b[i] = byte(byteTable[c])
	}
	return string(b)
}

// Words before an address that make it the one, or somebody else, and words at
// the start of a line that is about somebody else.
var (
	leadFailed = []string{"rcpt to", "recipient", "deliver", "failed", "addressed to", "unknown", "user", "mailbox", "account", "message to", "mail to", "email to", "invalid", "reject", "could not be", "couldn't be", "wasn't", "address", "no such", "send to", "sent to", "mobile",
		"empfanger", "an:", "nachricht an", "destinat", "adresse", "direccion", "endereco", "indirizzo", "geadresseerde", "ontvanger", "adres", "mottagare", "modtager", "mottaker", "vastaanottaja", "odbiorc", "prijemce", "cimzett", "alici", "adresu",
		"получател", "адресат", "адрес", "кому", "宛", "送信先", "受信者", "届け先", "收件", "수신", "받는", "nguoi nhan", "dia chi", "penerima"}
	leadOther = []string{"mail from", "from:", "from <", "from ", "sender", "contact", "reply", "message-id", "postmaster", "support", "question", "return-path", "sent by", "on behalf", "help", "generated from", "expanded from", "assistance", "e-mail us", "mailto:", "write to", "original to", "id=", "forward this", "send mail to", "report to", "reports to", "please send", "please forward", "visit",
		"absender", "expediteur", "remitente", "remetente", "mittente", "afzender", "avsandare", "afsender", "nadawc", "odesilatel", "felado", "gonderen", "отправител", "送信者", "差出人", "发件人", "寄件", "보낸", "kontakt", "contactez", "contacte"}
	linesOther = []string{"message-id", "from:", "date:", "subject:", "in-reply-to", "references:", "received:", "reply-to", "sender:", "return-path", "x-", ">>> mail from", "sent <<< mail from", "mail from", "for help", "contact ", "please contact", "for further assistance",
		"von:", "absender", "de :", "expediteur", "remitente", "remetente", "mittente", "van:", "afzender", "fran:", "fra:", "nadawca", "от:", "отправитель", "发件人", "寄件者", "差出人", "送信者", "보낸 사람"}
)

func (p *parser) rankOf(l *reportLine, a foundAddress) rank {
	trimmed := plain(strings.TrimLeft(l.low, " \t>|*-#"))
	for _, s := range linesOther {
		if strings.HasPrefix(trimmed, s) {
			return rankNone
		}
	}
	before := strings.Trim(l.low[:a.start], " \t<>*\"'-:|[(#.,;=`")
	if before == "" {
		after := strings.TrimLeft(l.text[a.end:], " \t>\"'")
		if after == "" || after[0] == ':' || after[0] == '(' || strings.HasPrefix(after, "...") {
			return rankLine
		}
		return rankStrong
	}
	near := plain(before[max(0, len(before)-40):])
	for _, s := range leadOther {
		if strings.Contains(near, s) {
			return rankNone
		}
	}
	if code, _, end := codesIn(l.text[:a.start]); code >= 400 {
		// "550 <user@example.org>... User unknown" is how sendmail names the
		// recipient; further right, or behind "<<<", another server speaks.
		if end > 0 && end < 14 && !strings.HasPrefix(trimmed, "<<<") && strings.Trim(l.text[end:a.start], " <:-") == "" {
			return rankStrong
		}
		return rankReply
	}
	if code, _, _ := codesIn(l.text[a.end:]); code > 0 {
		return rankStrong
	}
	for _, s := range leadFailed {
		if strings.Contains(near, s) {
			return rankStrong
		}
	}
	return rankWeak
}

// fromText reads a report without any standard fields: the addresses its text
// names, and for each the words nearest to it that explain something.
func (p *parser) fromText() bool {
	p.splitText()
	p.report.Format = "text"
	action := ActionFailed
	if p.saysDelayed() {
		action = ActionDelayed
	}
	addresses, confidence := p.failedAddresses()
	if p.allOurs(addresses) && p.header.Get("X-Failed-Recipients") == "" && !p.returnsOurMail() && !tellsReply(p.text) {
		return false // "your mailbox is full": phishing, or news about our own account
	}
	for _, a := range addresses {
		reason := p.wordsIn(a, len(addresses) == 1)
		w := readWords(reason)
		// A subject tells what became of the message, but seldom of whom.
		w.unproven = reason == p.subject && !p.returnsOurMail() && !strings.Contains(p.subject, strings.ToLower(a))
		r := Recipient{Address: a, Original: p.mailedAs(a), Action: action}
		if w.code >= 500 {
			r.Action = ActionFailed // a subject that says "deferred" speaks of another
		}
		if w.stage == message.StageNone && afterData(p.text) {
			w.stage = message.StageDot
		}
		p.add(w, r, confidence)
	}
	if len(p.report.Recipients) == 0 {
		// Nobody is named. The token may still tell who it is, so the report
		// must not be lost.
		p.report.Kind = KindBounce
		if action == ActionDelayed {
			p.report.Kind = KindDelay
		}
		return p.failureSubject() && (p.fromDaemon() || p.returnsOurMail())
	}
	p.conclude()
	return true
}

// allOurs reports whether every address is the sender's own.
func (p *parser) allOurs(addresses []string) bool {
	for _, a := range addresses {
		if !p.self[strings.ToLower(a)] {
			return false
		}
	}
	return len(addresses) > 0
}

// afterData reports a text that names the command apart from the reply:
// "SMTP command" and "DATA" on the next line, or "STEP: DATA SEND".
func afterData(text string) bool {
	low := strings.ToLower(text)
	if strings.Contains(low, "step: data") {
		return true
	}
	_, after, ok := strings.Cut(low, "smtp command")
	return ok && strings.HasPrefix(strings.TrimLeft(after, " :-\n"), "data")
}

// failedAddresses chooses the recipients, from the surest source that has any.
func (p *parser) failedAddresses() ([]string, uint8) {
	var list []string
	seen := map[string]bool{}
	add := func(a string) {
		key := strings.ToLower(a)
		if !seen[key] && len(list) < maxRecipients {
			seen[key] = true
			list = append(list, a)
		}
	}
	for _, v := range p.header.Values("X-Failed-Recipients") {
		for _, a := range findAddresses(v) {
			add(a.text)
		}
	}
	if len(list) > 0 {
		return list, 95
	}
	// First without our own side, then with it: people do write to themselves.
	for _, own := range []bool{false, true} {
		for _, least := range [...]rank{rankLine, rankStrong, rankReply} {
			for i := range p.lines {
				for j, a := range p.lines[i].addresses {
					if p.lines[i].rank[j] >= least && p.self[strings.ToLower(a.text)] == own {
						add(a.text)
					}
				}
			}
			if len(list) > 0 {
				return list, 80
			}
		}
		for _, a := range findAddresses(p.subject) {
			if p.failureSubject() && p.self[strings.ToLower(a.text)] == own {
				return []string{a.text}, 60
			}
		}
		if own {
			break
		}
		if a := p.onlyRecipient(); a != "" && p.mentions(a) {
			return []string{a}, 70
		}
		for i := range p.lines {
			for j, a := range p.lines[i].addresses {
				if p.lines[i].rank[j] == rankWeak && !p.self[strings.ToLower(a.text)] && len(list) < maxWeak {
					add(a.text)
				}
			}
		}
		if len(list) > 0 {
			return list, 50
		}
		if a := p.onlyRecipient(); a != "" {
			return []string{a}, 50
		}
	}
	return list, 40
}

// mentions reports whether the text names the address, whole or by its local
// part.
func (p *parser) mentions(a string) bool {
	return strings.Contains(strings.ToLower(p.text), strings.ToLower(a))
}

// mailedAs finds the address that was expanded into the one that failed, which is
// the one that the sender knows: "(expanded from <x>)", "(generated from x)".
func (p *parser) mailedAs(address string) string {
	if !p.expands {
		return ""
	}
	for _, i := range p.naming(address) {
		for k := i; k < len(p.lines) && k < i+4 && !(k > i && p.lines[k].blank); k++ {
			l := &p.lines[k]
			for _, lead := range [...]string{"expanded from", "generated from"} {
				at := strings.Index(l.low, lead)
				if at < 0 {
					continue
				}
				if all := findAddresses(l.text[at:]); len(all) > 0 && !strings.EqualFold(all[0].text, address) {
					return all[0].text
				}
			}
		}
	}
	return ""
}
