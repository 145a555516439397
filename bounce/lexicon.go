package bounce

import (
	"strings"
	"sync"
)

// The words by which mail systems give themselves away, in the form that plain
// gives text. One automaton finds them all in one pass; a literalSet then says
// which lists were met.

// wordList numbers the lists of the lexicon.
type wordList uint8

const (
	// daemonNames are names and local parts that only mail systems have.
	daemonNames wordList = iota
	// machineNames are borne by mail systems and by other machines too.
	machineNames
	// failureSubjects mark the subject of a bounce or a delay warning.
	failureSubjects
	// failurePhrases mark the text of a bounce or a delay warning.
	failurePhrases
	// delayPhrases mark a warning that delivery is late and goes on.
	delayPhrases
	// finalPhrases say that nobody will try again, whatever else was said.
	finalPhrases
	// copyMarkers introduce the message that came back, in reports that do not
	// use MIME for it. They are looked for in short lines.
	copyMarkers
	// autoSubjects begin or fill the subjects of automatic answers.
	autoSubjects
	// awaySubjects do so too, but newsletters have holidays in mind as well.
	awaySubjects
	lexiconLists
)

// lexicon is the lists and the automaton that finds their words.
type lexicon struct {
	words   []string
	first   [lexiconLists + 1]uint16 // the words of list n are first[n] to first[n+1]
	matcher *matcher
}

// theLexicon is built on first use: a process that sends and reads no reports
// should not pay for it.
var theLexicon = sync.OnceValue(func() *lexicon {
	x := &lexicon{}
	for list, words := range lexiconWords() {
		x.first[list] = uint16(len(x.words))
		x.words = append(x.words, words...)
	}
	x.first[lexiconLists] = uint16(len(x.words))
	var err error
	if x.matcher, err = newMatcher(x.words); err != nil {
		panic("bounce: the lexicon is too large: " + err.Error())
	}
	return x
})

// find returns the words within s, which is in plain form.
func (x *lexicon) find(s string) *literalSet {
	var seen literalSet
	x.matcher.find(s, &seen)
	return &seen
}

// has reports whether seen holds a word of the list.
func (x *lexicon) has(seen *literalSet, list wordList) bool {
	for id := x.first[list]; id < x.first[list+1]; id++ {
		if seen.has(id) {
			return true
		}
	}
	return false
}

// lexiconWords returns the lists, by language where that helps a reader. Nothing
// here is enough alone: see looksLikeBounce.
func lexiconWords() [lexiconLists][]string {
	words := [lexiconLists]string{
		daemonNames: `mailer-daemon|mailerdaemon|mailer daemon|mail-daemon|maildaemon|mail daemon|postmaster|poostmaster|post_master|post master|post office
			mail delivery|mail deliver|mail-delivery|maildelivery|delivery subsystem|delivery system|delivery service|delivery agent|mail system|mailsystem|mail.delivery|mail transport|mail router|mail-error|mail error|mail server|mail gateway|email gateway|e-mail gateway|mail administrator
			system administrator|interscan|delivery-notification|delivery notification|delivery status|mmdf|double-bounce|spam firewall|mailmarshal|content-filter|smtp-daemon|smtp daemon|messaging server|mta@|undeliverable|non-delivery
			systemadministrator|administrateur systeme|administrador del sistema|administrador do sistema|amministratore di sistema|systeembeheerder|systemadministrator|systeme de messagerie|servidor de correo|servidor de e-mail|servizio di posta|mail-system|почтовая система|служба доставки|системный администратор
			配信システム|メール配送|配送エラー|配信エラー|メールシステム|システム管理者|系统管理员|系統管理員|邮件系统|郵件系統|系统退信|시스템 관리자|메일 시스템`,
		machineNames: `bounce|mailer|daemon|sysadmin|administrator|listserv|majordomo|ezmlm|fml|sympa|mailman|no-reply@|noreply@|do-not-reply|donotreply|smtp@|-owner@|owner-|-request@|list manager|list server|gateway|filter|antispam|anti-spam|firewall|virus|notification|maiser@|mdaemon`,
		failureSubjects: `undeliver|returned mail|return mail|returned message|mail returned|message returned|returned to sender|returning message|returning to sender|failure notice|failure notification|failure report|failed delivery|failed mail|failed message|failed:|delivery fail|delivery has failed|delivery error|delivery problem|delivery report|delivery status|delivery notification|delivery impossible|delivery unsuccessful|unsuccessful delivery|non-delivery|nondelivery|non delivery|nondeliverable|non-deliverable|not delivered|unable to deliver|not be delivered|couldn't be delivered|can't be delivered|could not deliver|cannot deliver|couldn't deliver|can't deliver|problem delivering|error delivering|not be sent|couldn't be sent|unable to send
			mail delivery|mail failure|mail failed|mail error|mail system error|message delivery|message you sent|message status|message failure|error sending|email delivery|e-mail delivery|permanent delivery|permanent failure|permanent error|user unknown|unknown user|host unknown|unknown host|message blocked|mail blocked|mail rejected|message rejected|email rejected|was rejected|has been rejected|rejected:|was blocked|has been blocked|banned|blocked by|failure delivery|failure :|failure: |could not send|cannot send|unsent|postmaster notify|delayed|delay notification|mail delivery deferred|smtp error|bounce|invalid recipient|unknown address|invalid address|no such user|mailbox full|mailbox is full|delivery attempt|delivery delay|non-member|not member|not a member|failed to deliver|not yet delivered|not yet been delivered|still not delivered|transport error|transmission failure|transmission error|mail not delivered|virus found|virus in your|spam rejected|quarantined
			nachricht konnte nicht|unzustellbar|nicht zugestellt|nicht zustellbar|fehler bei der|zustellung|zustellfehler|verzogert|zuruckgesandt|unbekannter empfanger|nicht versendet
			non remis|non delivre|non distribue|echec|remise differee|differe :|retour a l'expediteur|n'a pas pu etre|n'a pu etre|impossible de remettre|non distribuable|message refuse|etat de remise
			no se puede entregar|no se pudo entregar|no entregado|no ha podido|error de entrega|error en la entrega|fallo en la entrega|devuelto|mensaje no|correo no entregado|no entregable|entrega retrasada|retrasado
			nao entregue|falha na entrega|nao e possivel entregar|nao pode ser|erro na entrega|entrega atrasada|devolvida|devolucao
			non recapitabile|mancato recapito|mancata consegna|impossibile recapitare|non recapitato|non consegnato|errore di consegna|ritardato
			onbestelbaar|niet bezorgd|niet besteld|niet worden bezorgd|niet afgeleverd|kon niet worden|vertraagd|bezorgfout
			kan inte levereras|kunde inte|kunne ikke leveres|olevererbart|olevererad|kan ikke leveres|ikke leveret|ikke levert|leveransen|leveringen|forsinket|forsenad|oleverer|uleverbar|toimittaminen|ei voitu toimittaa|ei toimitettu|viivasty
			nie mozna dostarczyc|niedostarczalne|niedostarczona|nie dostarczono|opoznion|nedorucitel|nelze dorucit|nedoruceno|zprava nebyla|nedoruceni|kezbesithetetlen|kezbesitese|nem kezbesit|nu a putut fi|nelivrat|nelivrabil|nije isporucen|ni bilo mogoce|nedorucen|teslim edilemedi|iletilemedi|teslim edilemez|gecikti
			nepristatyt|neispristat|nepiegadat|nevareja piegadat|kohaletoimetamine ebaonnestus|ei saanud kohale|ei ole kohale
			недоставлен|не доставлен|не может быть доставлен|невозможно доставить|ваше сообщение не|ваше письмо не|сбой доставки|ошибка доставки|отложен|задерж|неможливо доставити|не доставлено|недоставен|μη παραδοτε|δεν ηταν δυνατη|αδυναμια παραδοσης|αποτυχια παραδοσης|לא ניתן למסור|תعذر|تعذر التسليم|غير قابل للتسليم
			配信不能|配信できません|配信されませんでした|配送できません|送信できません|送信エラー|配信エラー|配送エラー|メールエラー|エラー通知|エラーのお知らせ|メールを配信|届けることが|お届けでき|未配信|返信されました|配信遅延|配信が遅れ|送信失敗|配信失敗|不達|未達|宛先不明
			退信|退回|未送达|未送達|无法投递|無法傳遞|無法投遞|無法寄達|傳遞失敗|传递失败|无法送达|投递失败|发送失败|被退|延迟|延遲|전달되지|반송|배달 실패|배달되지|전송 실패|전송되지|발송 실패|수신 거부|지연
			khong gui duoc|khong the gui|khong chuyen duoc|ไม่สามารถส่ง|tidak dapat dikirim|gagal dikirim|tidak terkirim|gagal terkirim`,
		failurePhrases: `not be delivered|couldn't be delivered|can't be delivered|not delivered|wasn't delivered|wasn't able to deliver|not able to deliver|unable to deliver|could not deliver|couldn't deliver|cannot deliver|can't deliver|failed to deliver|unable to send|delivery failed|delivery failure|delivery has failed|failed permanently|delivery to the following|delivery of your message|delivery of the email was stopped|error delivering|trouble delivering|delivery problem|delivery error|permanent error|permanent fatal|fatal error|transient non-fatal|transcript of session|undeliverable|undelivered|non-deliverable|did not reach|not be reached|couldn't be reached|has been delayed|is delayed|was delayed|unable to be delivered|unknown user|user unknown|unknown recipient|recipient unknown|no such user|no such mailbox|no such recipient|user not found|mailbox not found|invalid final delivery|mailbox is full|mailbox full|returned to sender|returning it to you|returned to you|is being returned|was returned|message was rejected|was rejected|message rejected|been rejected|delivery attempt|did not receive this message|was not relayed|remote host said|remote server returned|remote server replied|failure reasons|failure reason|failed address|failed recipient|permission to post|not a member|not member|non-member|could not send|could not be sent|couldn't be sent|not be sent|failed to send|sent <<< rcpt|>>> rcpt to|action: failed|server message|message blocked|not accepted|email preferences of the person|envelope expired|does not exist|doesn't exist|could not process|bounced|recipients were affected|following recipient|following address|no valid recipients|has failed|invalid recipient|invalid address|was blocked|been blocked|spam filter|returned undelivered|recipient's mailbox|over quota|quota exceeded|delivery notification|could not be found|couldn't be found|still undelivered|not yet been delivered|giving up|not be transmitted|host unknown|unknown host|unrouteable
			nicht zugestellt|konnte nicht|konnten nicht|unzustellbar|nicht zustellbar|nicht erreicht|nicht versendet|unbekannt|existiert nicht|zustellung
			n'a pas pu|n'a pu etre|n'ont pas pu|echec de la remise|echec de remise|n'existe pas|impossible de remettre|non distribue|a ete differee|a ete refuse|pas ete remis|est inconnu
			no se pudo|no ha podido|no se ha podido|no pudo ser|no ha sido entregado|no se puede entregar|no existe|error de entrega|rechazado
			non e stato possibile|impossibile|non e stato recapitato|recapito non riuscito|non puo essere|non esiste
			nao pode ser|nao foi possivel|falha na entrega|nao foi entregue|nao existe|foi rejeitada
			niet worden|is mislukt|niet bezorgd|kon niet|bestaat niet
			kunde inte|kan inte|har inte levererats|kunne ikke|kan ikke|blev ikke|ei voitu|ei toimitettu|epaonnistui|mislykkedes|mislyktes
			nie mozna|nie mogla|nie moze|nie istnieje|nie zostala|nepodarilo|nelze|nebylo mozne|neexistuje|nem sikerult|nem kezbesit|nem lehet|nu a putut|nije moguce|ni bilo mogoce|edilemedi|basarisiz|bulunamad
			nepristatyt|nepavyko|neegzistuoja|nevareja|neizdevas|neeksiste|ei eksisteeri|ebaonnestus
			не может быть доставлен|не доставлен|не удалось|недоставлен|не была доставлена|не было доставлено|не существует|сбой доставки|невозможно доставить|не найден|не вдалося|не може бути|δεν ηταν δυνατ|απετυχε|تعذر|فشل تسليم|فشل التسليم
			配信できません|配信に失敗|配信されません|送信できません|送信されません|送信に失敗|配送できません|配送に失敗|エラーのため|届けできません|届けできな|お届けでき|届けることが|宛先|存在しない|存在しません|見つかりません|受信できません|不達
			无法送达|无法投递|无法发送|未能送达|未能投递|没有投递|投递失败|发送失败|退信|被退回|不存在|無法傳遞|無法傳送|無法投遞|無法|失败|失敗|不成功|전달되지|배달하지 못|배달되지|전송되지|보낼 수 없|존재하지 않|반송|실패|khong the|khong ton tai|khong gui duoc|ไม่สามารถ|ไม่พบ|tidak dapat|tidak ditemukan|gagal`,
		delayPhrases: `warning message only|warning only|do not need to resend|don't need to resend|need not resend|do not need to re-send|not need to send|will be retried|will continue to be|will continue trying|will continue to try|will keep trying|we'll keep trying|keep trying until|still being retried|been delayed|is delayed for|delivery delayed|delivery is delayed|not yet been delivered|not yet delivered|been in the queue for|has not yet been|has not been delivered to|no action is required|temporary failure report|warning: could not send|warning--could not send|delivery will be attempted|delivery incomplete|delivery attempts will continue|(delay)|transient non-fatal|remains on the queue|remains in the queue|still undelivered|temporary problem|no need to resend|will try again for|will be tried again|attempts will be made|notification: delayed|delayed mail|message delayed|still in the queue|kept in the queue
			wird weiterhin versucht|zustellung verzogert|verzogert|a ete retardee|a ete differee|remise differee|avertissement uniquement|sera retente|se ha retrasado|solo una advertencia|se ha demorado|ritardat|solo un avviso|atrasad|adiad|vertraagd|vertraging|forsinket|forsenad|forsenats|har inte levererats annu|fortsatta forsoka|viivasty|opoznion|zpozden|kesleltet|kesik|intarziat|gecik|задерж|отложен|попытки доставки будут|καθυστερ|遅延|遅れて|再送を試み|延迟|延遲|지연`,
		finalPhrases: `giving up|given up|gave up|be deleted from queue|not going to try again|in the queue too long|no further delivery attempts|no further attempts|will not be retried|will not try again|permanent error|permanent failure|permanent fatal|failed permanently|envelope expired|will not be tried again|been removed from|(failure)|retry timeout exceeded|retry limit|endgultig fehlgeschlagen|echec permanent|error permanente|erro permanente|errore permanente`,
		copyMarkers: `below this line is a copy|original message follows|this is a copy of|copy of the message|copy of your message|unsent message follows|message headers follow|message header follows|returned message|below is a copy of|header of the original message|headers of the original message|copy of the message header|message text follows|original message --|original message==|-original message|- original message|* original message|original message:|original headers:|original message headers|original message header|original message follow|original mail header|original message as received|original message below
			header of original message|returned text|returned mail follows|message contents follow|contents of the message|message follows|text of mail follows|original message text|original mail as follows|start of original message|begin original message|initial part of the message|message is being returned|en-tetes de message d'origine|en-tetes du message|copie du message|ursprungliche nachrichtenkopf|kopfzeilen der urspr|kopie der nachricht|kopie ihrer nachricht|originalnachricht|ursprungliche nachricht
			encabezados de mensajes originales|encabezados del mensaje original|mensaje original|intestazioni originali|messaggio originale|cabecalhos de mensagens|mensagem original|oorspronkelijke berichtkop|oorspronkelijk bericht|ursprungliga meddelande|original meddelande|oprindelige brevhoved|opprinnelige meldings|oprindelige meddelelse|alkuperaisen viestin|oryginalne naglowki|oryginalna wiadomosc|puvodni zahlavi|puvodni zprava|eredeti uzenet|ozgun ileti|orijinal ileti|исходные заголовки|исходное сообщение|копия сообщения|元のメッセージ|元のメール|オリジナルメッセージ|原始邮件|原始郵件|原邮件|원래 메시지|원본 메일
			the original message was:|your original message|text of your message|message sent:|the message you sent:|the first few lines of|--- undelivered message|undelivered message follows|--- message header|---message header|----- message header|rejected message|forwarded message|copy of the original|message not delivered follows|original e-mail|your message reads|your message follows|下面是您的邮件|message log follows`,
		autoSubjects: `autoreply|auto-reply|auto reply|automatic reply|automated reply|automatic response|auto-response|auto response|autoresponse|autoresponder|auto responder|automated response|automatic answer
			out of office|out of the office|out-of-office|outofoffice|away from my mail|away from the office|away until|away from office|vacation reply|vacation message|vacation notice|vacation response|absence notification|away message|not in the office
			abwesen|automatische antwort|autom. antwort|automatische nachricht|nicht im buro|ausser haus|nicht im haus
			reponse automatique|absence du bureau|absent du bureau|absence de |message d'absence|notification d'absence
			respuesta automatica|fuera de la oficina|fuera de oficina|ausente de la oficina|contestacion automatica|mensaje de ausencia
			risposta automatica|fuori ufficio|fuori sede|assenza dall'ufficio|messaggio automatico|resposta automatica|ausencia temporaria|fora do escritorio|ausencia do escritorio
			automatisch antwoord|automatische reactie|afwezig|niet op kantoor|buiten kantoor|autosvar|automatiskt svar|automatisk svar|franvaro|fravaer|ute af kontoret|ikke pa kontoret|poissaolo|automaattinen vastaus
			automatyczna odpowiedz|autoodpowiedz|poza biurem|nieobecno|automaticka odpoved|mimo kancelar|automatikus valasz|hazon kivul|raspuns automat|samodejni odgovor|automatski odgovor|автоответ|автоматический ответ|вне офиса|в отпуске|автоматична відповідь|автоматичен отговор
			自動返信|自動応答|不在通知|不在のお知らせ|自动回复|自動回覆|自动答复|外出自动|不在办公室|不在辦公室|자동 회신|자동응답|자동 응답|부재중|otomatik yanit|otomatik cevap|ofis disinda|αυτοματη απαντηση|εκτος γραφειου|رد تلقائي|תשובה אוטומטית|מחוץ למשרד|tra loi tu dong|ตอบกลับอัตโนมัติ|balasan otomatis|jawapan automatik`,
		awaySubjects: `on vacation|on holiday|on leave|i am away|i'm away|i am on |annual leave|parental leave|maternity leave|sick leave|currently away|currently unavailable|no longer with|no longer at |has left the company|i have left|gone fishing|urlaub|nicht am platz|en conge|en vacances|accuse de reception|de vacaciones|in ferie|de ferias|semester|lomalla|休暇|外出中|休假|eingangsbestatigung|отсутствую|нет на месте|automated message`,
	}
	var lists [lexiconLists][]string
	for i, s := range words {
		for line := range strings.Lines(s) {
			lists[i] = append(lists[i], strings.Split(strings.TrimSpace(line), "|")...)
		}
	}
	return lists
}
