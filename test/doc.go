// Package test tells stories about the whole engine: each file under stories is
// one, with its DNS zone, its configuration, the mail hosts of the world, what
// happens, and the events that must come of it. A story runs the real engine
// (package app) in a testing/synctest bubble, on a crashable file system in
// memory and with connections in memory, so that five days of retries cost
// milliseconds and a power cut is a command.
//
// # The file
//
// The part above the first file of the txtar archive is the story: one command
// a line, "#" for comments, indented lines belonging to the command above them.
// The archive may hold
//
//	zone         DNS records, beside the sender's own, which are always there
//	config.toml  tables to add to the configuration; KEYFILE in it names the DKIM key
//
// and any other file that commands name. ${id} stands for the message that was
// injected with as=id, ${+2h} for the time two hours from now.
//
// # Commands
//
//	inject from=A to=B,C [file=F] [header="X: y"]… [notify=FAILURE,DELAY]
//	       [ret=] [envid=] [size=N] [count=N] [code=250] [as=id] [background]
//	post [key=K] [tenant=T] [code=202] [as=id] [replayed] {json}
//	cancel ID [code=200]
//	suppress ADDRESS
//	remember SINK mail=N as=x   ${x.path} is then the return path of that mail,
//	        ${x.msgid} ${x.ref} ${x.fid} what its header says, and ${x.unsub}
//	        ${x.subject} where and what to write to unsubscribe
//	bring to=ADDRESS file=F [from=A] [sign=DOMAIN] [flip=N] [code=250]
//	        a report to the bounce listener, at 127.0.0.1:2526, where config.toml
//	        has one; flip changes a bit of octet N of the address
//	advance 6m
//	sink NAME ip=192.0.2.1 [without=8BITMIME,…] [tls=good|broken|early]
//	sink NAME reply STAGE "451 …" [to=ADDRESS] [times=N]   (or "drop", "hold")
//	sink NAME clear | release | down | up | silent
//	dns fail NAME MODE [TYPE…] | dns ok NAME | dns set NAME "MX 10 …"… | dns remove NAME
//	disk free=10MB | disk hold | disk go
//	restart | stop | start | kill | crash
//	stopping (stop, without waiting for it) | stopped (wait for it now)
//	reload FILE
//	verify
//
// stop is a graceful end; kill ends the process but not the machine; crash is a
// power cut, after which only what was synced is there. Where a reply rule of a
// sink says "hold", nothing is answered until release.
//
//	expect events RECIPIENT         then, indented, every event with the fields that matter
//	expect sink NAME messages=1 …   connections, open, refused, recipients,
//	                                largest (recipients of one message)
//	expect mail NAME N from= to= tls=true|false params=TEXT
//	                                then, indented, "has TEXT" and "lacks TEXT"
//	expect order NAME RECIPIENT…    in which order mail came in
//	expect before NAME RECIPIENT OTHER N   N messages to OTHER came after the last to RECIPIENT
//	expect queue N
//	expect reply CODE|none                 to the first injection in the background
//	expect status ID state= attempt= next= reply=
//	expect suppressed ADDRESS [tenant=T] [for="REASON by SOURCE[ with evidence]"]
//	expect metric NAME VALUE               summed over all labels, since the start
//	expect held KIND:REASON…               what lies in quarantine, in order
//	expect log "TEXT" | expect nolog "TEXT"
//
// Times (at=, next=) count from the beginning of the story.
//
// # What holds in every story
//
// Every message that a sink takes down has CRLF lines of at most 998 octets and
// carries a DKIM signature that verifies against the story's DNS, unless the
// story has a file named unsigned. The events of each recipient are numbered
// without a gap, and nothing but a late report follows a final one. At the end
// the engine stops in order and its queue passes queue.Verify.
//
// go test ./test -rewrite puts the events that came into the files, for review.
//
// # Stores of earlier releases
//
// testdata/format-N.tar.gz is a data directory as the first release with format N
// left it. The present code must read it whole; -write makes one for a new N.
package test
