package bounce

import "strings"

// What marks mail as a bounce when it does not say so by its type. One sign
// alone proves nothing: people forward bounces, and write about them.

// daemonNames are local parts and display names of mail systems.
var daemonNames = [...]string{
	"mailer-daemon", "mailerdaemon", "mail-daemon", "maildaemon", "postmaster", "poostmaster", "mail delivery", "mail deliver", "delivery subsystem", "delivery system", "mail system", "system administrator", "mailsystem", "mail.delivery", "interscan", "mail administrator", "bounce", "mailer", "daemon", "delivery-notification", "delivery notification", "mmdf", "mail router", "double-bounce", "spam firewall", "mailmarshal", "mail-error", "sysadmin", "administrator", "content-filter", "smtp-daemon", "listserv", "majordomo", "ezmlm", "fml", "no-reply@", "noreply@", "email gateway", "e-mail gateway", "messaging server",
}

// failureSubjects mark the subject of a bounce or a delay warning.
var failureSubjects = [...]string{
	"undeliver", "undelivered", "returned mail", "return mail", "returned message", "mail returned", "message returned", "returned to sender", "returning message", "failure notice", "failure notification", "failure report", "failed delivery", "delivery fail", "delivery has failed", "delivery error", "delivery problem", "delivery report", "delivery status", "delivery notification", "delivery impossible", "non-delivery", "nondelivery", "nondeliverable", "not delivered", "unable to deliver", "could not be delivered", "couldn't be delivered", "cannot be delivered", "could not deliver", "can't be delivered", "cannot deliver",
	"mail delivery", "mail delivery failed", "mail failure", "mail failed", "mail error", "mail system error", "message delivery has failed", "message delivery", "message you sent blocked", "message status", "error sending", "email delivery", "e-mail delivery", "mail could not be delivered", "message undeliverable", "permanent delivery failure", "user unknown", "unknown user", "undeliverable mail", "message blocked", "mail rejected", "message rejected", "rejected:", "banned", "blocked by", "failure delivery", "failure :", "failure: ", "warning: could not send", "warning--could not send", "could not send message", "postmaster notify", "delayed", "delay notification", "mail delivery deferred", "smtp error", "bounce", "invalid recipient", "unknown address", "delivery attempt", "delivery delay", "delayed mail", "nachricht konnte nicht", "unzustellbar", "nicht zugestellt", "nicht zustellbar", "unzustellbare", "fehler bei der", "zustellung", "non remis", "non délivré", "non distribué", "échec de la remise", "échec", "remise différée", "retour à l'expéditeur", "no se puede entregar", "no se pudo entregar", "no entregado", "error de entrega", "devuelto", "mensaje no", "não entregue", "falha na entrega", "não é possível entregar", "non recapitabile", "mancato recapito", "mancata consegna", "impossibile recapitare", "onbestelbaar", "niet bezorgd", "niet besteld", "kan inte levereras", "kunne ikke leveres", "olevererbart", "kan ikke leveres", "toimittaminen", "nie można dostarczyć", "niedostarczalne", "nedoručitelné", "nelze doručit", "kézbesíthetetlen", "недоставлен", "не доставлено", "не может быть доставлено", "невозможно доставить", "ваше сообщение не", "配信不能", "配信できません", "配送できません", "送信できません", "送信エラー", "配信エラー", "メールエラー", "エラー通知", "メールを配信", "届けることが", "未配信", "返信されました", "退信", "退回", "未送达", "无法投递", "無法傳遞", "傳遞失敗", "系统退信", "无法送达", "投递失败", "전달되지", "반송", "배달 실패", "iletilemedi", "teslim edilemedi",
	"postfix smtp server: errors", "non-member", "nondeliverable mail", "not be delivered", "failed to deliver", "problem delivering", "message not delivered", "mail not delivered", "transport error", "transmission failure", "notification d'état de remise",
}

// failurePhrases mark the text of a bounce or a delay warning.
var failurePhrases = [...]string{
	"could not be delivered", "couldn't be delivered", "cannot be delivered", "can not be delivered", "can't be delivered", "was not delivered", "wasn't delivered", "were not delivered", "not be delivered", "wasn't able to deliver", "not able to deliver", "unable to deliver", "could not deliver", "couldn't deliver", "cannot deliver", "can't deliver", "failed to deliver", "delivery failed", "delivery failure", "failed permanently", "delivery to the following", "delivery of your message", "error delivering", "trouble delivering", "delivery problems", "delivery errors", "delivery error", "permanent fatal errors", "permanent error", "transient non-fatal", "transcript of session", "undeliverable", "undelivered", "did not reach", "could not be reached", "not delivered to", "has been delayed", "delivery has been delayed", "is delayed", "unable to be delivered", "unknown user:", "unknown user", "user unknown", "no such user", "invalid final delivery", "mailbox is full", "mailbox full", "returned to sender", "returning it to you", "rejected your message", "message was rejected", "was rejected", "message rejected", "has been rejected", "delivery attempt", "did not receive this message", "was not relayed", "remote host said", "failure reasons", "failed addresses", "failed recipient", "permission to post", "not a member", "not member", "non-member", "could not send", "could not be sent", "failed to send", "sent <<< rcpt", "action: failed", "server message", "message blocked", "not accepted", "email preferences of the person", "envelope expired", "does not exist", "could not process", "bounced", "recipients were affected", "following recipients", "following addresses", "following address", "no valid recipients", "has failed", "invalid recipient", "invalid address", "was blocked", "spam filter", "returned undelivered", "recipient's mailbox", "over quota", "delivery notification",
	"配信できません", "送信できません", "送信に失敗", "配送できません", "エラーのため", "届けできません", "お届けでき", "宛先", "存在しない", "не может быть доставлено", "не доставлено", "не удалось доставить", "недоставлен", "nicht zugestellt", "konnte nicht", "unzustellbar", "n'a pas pu", "n'a pu être", "échec de la remise", "n'existe pas", "no se pudo entregar", "no ha podido", "no se ha podido", "non è stato possibile", "impossibile", "não pôde ser", "não foi possível", "não pode ser", "niet worden", "nie można", "nie mogła", "kunne ikke", "无法送达", "无法投递", "未能送达", "退信", "不存在", "無法傳遞", "可能不存在", "無法",
}

// delayPhrases mark a warning that delivery is late and goes on.
var delayPhrases = [...]string{
	"warning message only", "do not need to resend", "don't need to resend", "need not resend", "do not need to re-send", "will be retried", "will continue to be", "will continue trying", "will continue to try", "will keep trying", "we'll keep trying", "still being retried", "has been delayed", "is delayed for", "delivery delayed", "delivery is delayed", "not yet been delivered", "has not yet been", "has not been delivered to", "no action is required", "temporary failure report", "warning: could not send", "warning--could not send", "delivery will be attempted", "delivery incomplete", "delivery attempts will continue", "(delay)", "transient non-fatal", "remains on the queue", "remains in the queue", "still undelivered after", "temporary problem", "no need to resend", "will try again for", "notification: delayed", "wird weiterhin versucht", "zustellung verzögert", "verzögert", "a été retardée", "remise différée", "se ha retrasado", "ritardata", "atrasada", "задерж", "遅延", "延迟",
}

// finalPhrases say that nobody will try again, whatever else was said.
var finalPhrases = [...]string{
	"giving up", "given up", "will be deleted from queue", "not going to try again", "in the queue too long", "no further delivery attempts", "will not be retried", "permanent error", "permanent failure", "failed permanently", "envelope expired", "will not be tried again", "permanent fatal errors", "has been removed from", "(failure)", "retry timeout exceeded",
}

func containsAny(s string, list []string) bool {
	for _, x := range list {
		if strings.Contains(s, x) {
			return true
		}
	}
	return false
}

// fromDaemon reports whether a mail system sent the mail.
func (p *parser) fromDaemon() bool {
	from := strings.ToLower(decodeWords(p.header.Get("From")))
	return containsAny(from, daemonNames[:]) || p.header.Get("X-MLServer") != "" || p.header.Get("X-ML-Name") != "" || p.header.Get("X-MailingList-Error") != ""
}

// nullSender reports a Return-Path that no person has.
func (p *parser) nullSender() bool {
	for _, v := range p.header.Values("Return-Path") {
		v = strings.ToLower(v)
		if strings.HasPrefix(v, "<>") || strings.Contains(v, "mailer-daemon") || strings.HasPrefix(v, "<postmaster@") || strings.HasPrefix(v, "postmaster@") {
			return true
		}
	}
	return false
}

func failureSubject(subject string) bool { return containsAny(subject, failureSubjects[:]) }

// fromPerson reports mail whose envelope sender is its author, which a system's
// own mail never has.
func (p *parser) fromPerson() bool {
	from := findAddresses(p.header.Get("From"))
	path := findAddresses(p.header.Get("Return-Path"))
	return len(from) > 0 && len(path) > 0 && strings.EqualFold(from[0].text, path[0].text)
}

// looksLikeBounce weighs the signs.
func (p *parser) looksLikeBounce() bool {
	if p.header.Get("X-Failed-Recipients") != "" {
		return true
	}
	// "Re: Undelivered mail" is a person.
	if strings.HasPrefix(p.subject, "re:") || strings.HasPrefix(p.subject, "fwd:") || strings.HasPrefix(p.subject, "aw:") {
		return p.nullSender() && p.fromDaemon()
	}
	system := p.fromDaemon() || p.nullSender()
	subject := failureSubject(p.subject)
	text := containsAny(strings.ToLower(p.text), failurePhrases[:])
	auto := strings.HasPrefix(strings.ToLower(p.header.Get("Auto-Submitted")), "auto-")
	if auto && !subject && !p.fromDaemon() || autoSubject(p.subject) && !subject {
		return false
	}
	return system && (text || subject) || subject && text && !p.fromPerson()
}

// saysDelayed reports a warning: late, and still being tried.
func (p *parser) saysDelayed(text string) bool {
	low := strings.ToLower(text)
	if containsAny(low, finalPhrases[:]) || containsAny(p.subject, finalPhrases[:]) {
		return false
	}
	return containsAny(p.subject, delayPhrases[:]) || containsAny(p.subject, []string{"delayed", "delay notification", "delivery delay", "deferred"}) || containsAny(low, delayPhrases[:])
}
