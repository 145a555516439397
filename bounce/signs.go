package bounce

import "strings"

// What marks mail as a bounce when it does not say so by its type. One sign
// alone proves nothing: people forward bounces, and write about them.

// fromDaemon reports whether a mail system sent the mail, by its own account.
func (p *parser) fromDaemon() bool {
	return p.words.has(p.fromSeen, daemonNames) || p.header.Get("X-MLServer") != "" || p.header.Get("X-ML-Name") != "" || p.header.Get("X-MailingList-Error") != ""
}

// fromMachine reports a sender that may be a mail system or another machine.
func (p *parser) fromMachine() bool { return p.words.has(p.fromSeen, machineNames) }

// nullSender reports a Return-Path that no person has.
func (p *parser) nullSender() bool {
	for i := range p.header {
		if !strings.EqualFold(p.header[i].Name, "Return-Path") {
			continue
		}
		v := strings.ToLower(p.header[i].Value)
		if strings.HasPrefix(v, "<>") || strings.Contains(v, "mailer-daemon") || strings.HasPrefix(v, "<postmaster@") || strings.HasPrefix(v, "postmaster@") {
			return true
		}
	}
	return false
}

func (p *parser) failureSubject() bool { return p.words.has(p.subjectSeen, failureSubjects) }

// fromPerson reports mail whose envelope sender is its author, which a system's
// own mail seldom has.
func (p *parser) fromPerson() bool {
	from := findAddresses(p.header.Get("From"))
	path := findAddresses(p.header.Get("Return-Path"))
	return len(from) > 0 && len(path) > 0 && strings.EqualFold(from[0].text, path[0].text)
}

// isAnswer reports a subject that mail programs make when somebody answers or
// forwards. "Re: Undelivered mail" is a person.
func (p *parser) isAnswer() bool {
	head, _, ok := strings.Cut(p.subject, ":")
	if !ok {
		return false
	}
	switch strings.TrimRight(head, " [0123456789]") {
	case "re", "fw", "fwd", "aw", "wg", "sv", "vs", "tr", "rv", "rif", "antw", "doorst", "odp", "ynt", "回复", "回覆", "答复", "转发", "轉寄", "返信", "転送":
		return true
	}
	return false
}

// fromList reports mail that a mailing list or a mass mailer passed on.
func (p *parser) fromList() bool {
	return p.header.Get("List-Id") != "" || p.header.Get("List-Post") != "" || p.header.Get("List-Unsubscribe") != ""
}

// returnsOurMail reports whether the message that came back was written by the
// one to whom the report was sent. That is what a bounce is, in any language.
func (p *parser) returnsOurMail() bool {
	if len(p.report.Original) < 2 {
		return false
	}
	to := map[string]bool{}
	for _, name := range [...]string{"To", "Delivered-To", "X-Original-To", "Envelope-To"} {
		for _, v := range p.header.Values(name) {
			for _, a := range findAddresses(v) {
				to[strings.ToLower(a.text)] = true
			}
		}
	}
	for _, name := range [...]string{"From", "Return-Path", "Sender", "Errors-To", "Reply-To"} {
		for _, v := range p.report.Original.Values(name) {
			for _, a := range findAddresses(v) {
				if to[strings.ToLower(a.text)] {
					return true
				}
			}
		}
	}
	return false
}

// tellsReply reports whether text quotes a refusal of a mail server.
func tellsReply(text string) bool {
	for n := 0; text != "" && n < maxLines; n++ {
		var line string
		line, text, _ = strings.Cut(text, "\n")
		if code, _, _ := codesIn(line); code >= 400 {
			return true
		}
	}
	return false
}

// looksLikeBounce weighs the signs: who sent it, what it says, and what it
// brings along.
func (p *parser) looksLikeBounce() bool {
	if p.header.Get("X-Failed-Recipients") != "" {
		return true
	}
	daemon, null := p.fromDaemon(), p.nullSender()
	if p.isAnswer() {
		return daemon && (null || p.returnsOurMail())
	}
	subject := p.failureSubject()
	auto := strings.HasPrefix(strings.ToLower(p.header.Get("Auto-Submitted")), "auto-")
	if auto && !subject && !daemon || p.autoSubject() && !subject {
		return false
	}
	text := p.words.has(p.textSeen, failurePhrases) || p.words.has(p.textSeen, delayPhrases)
	switch {
	case daemon && !p.fromPerson(), daemon && null:
		if subject || text {
			return true
		}
		return p.returnsOurMail() || tellsReply(p.text)
	case p.fromList():
		return false
	case null:
		// Not everything without a return path is a bounce, but all that
		// speaks of failure and shows what failed.
		return subject && (p.fromMachine() || tellsReply(p.text) || p.returnsOurMail() || p.namesFailed(rankWeak)) || text && (p.fromMachine() || tellsReply(p.text) || p.returnsOurMail())
	case daemon, p.fromMachine():
		return (subject || text) && (p.returnsOurMail() || tellsReply(p.text) && (subject || p.namesFailed(rankLine))) || subject && text && !p.fromPerson() && p.namesFailed(rankStrong)
	}
	// Nobody known as a system: people write about failed mail as well, but they
	// do not list addresses.
	return subject && text && !p.fromPerson() && p.namesFailed(rankLine) || (subject || text) && !p.fromPerson() && p.returnsOurMail()
}

// namesFailed reports whether the text names an address of somebody else as the
// one that failed, as surely as least says.
func (p *parser) namesFailed(least rank) bool {
	lines := p.splitText()
	for i := range lines {
		for j, a := range lines[i].addresses {
			if lines[i].rank[j] >= least && !p.self[strings.ToLower(a.text)] {
				return true
			}
		}
	}
	return false
}

// saysDelayed reports a warning: late, and still being tried.
func (p *parser) saysDelayed() bool {
	if p.words.has(p.textSeen, finalPhrases) || p.words.has(p.subjectSeen, finalPhrases) {
		return false
	}
	return p.words.has(p.subjectSeen, delayPhrases) || p.words.has(p.textSeen, delayPhrases) ||
		strings.Contains(p.subject, "delayed") || strings.Contains(p.subject, "delay notification") || strings.Contains(p.subject, "delivery delay") || strings.Contains(p.subject, "deferred")
}
