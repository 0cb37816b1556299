package http1

// Answer is the head of one.
type Answer struct {
	Status int
	Minor  int
	Reason string
	Fields []Field
	Length int64 // of the body; Chunked, or UntilClose; 0: none
	Close  bool  // nothing more may be asked on the connection
	// Options: Connection names fields beyond close and keep-alive.
	Options bool
}

// Parse reads a whole head, as Scan found it, of the answer to a request with that method.
func (a *Answer) Parse(head, method string) (err error) {
	*a = Answer{Fields: a.Fields[:0]}
	if len(head) < len("HTTP/1.1 200\r\n") || head[:7] != "HTTP/1." || head[7] != '1' && head[7] != '0' || head[8] != ' ' {
		return ErrStatus
	}
	a.Minor = int(head[7] - '0')
	for _, c := range []byte(head[9:12]) {
		if c < '0' || c > '9' {
			return ErrStatus
		}
		a.Status = a.Status*10 + int(c-'0')
	}
	if a.Status < 100 || a.Status > 599 {
		return ErrStatus
	}
	head = head[12:]
	i := 0
	for i < len(head) && text[head[i]] {
		i++
	}
	if i > 0 && head[0] != ' ' || i+1 >= len(head) || head[i] != '\r' || head[i+1] != '\n' {
		return ErrStatus
	}
	if i > 0 {
		a.Reason = head[1:i]
	}
	if a.Fields, err = fields(head[i+2:], a.Fields); err != nil {
		return err
	}
	for i := range a.Fields {
		if f := &a.Fields[i]; f.Kind == Connection {
			a.options(f.Value)
		}
	}
	if a.Minor == 0 {
		a.Close = true
	}
	if a.Length, err = framing(a.Fields, a.Minor); err != nil {
		return err
	}
	if bodiless := a.Status < 200 || a.Status == 204 || a.Status == 304; bodiless || method == "HEAD" {
		// Whoever believed the fields all the same would take what comes next for a body: only of HEAD and 304 they may
		// speak of one that is not there.
		if a.Length == Chunked && method != "HEAD" && a.Status != 304 {
			return ErrFraming
		}
		if a.Length > 0 && (a.Status < 200 || a.Status == 204) {
			return ErrFraming
		}
		a.Length = 0
		return nil
	}
	if a.Length == UntilClose {
		a.Close = true
	}
	return nil
}

func (a *Answer) options(list string) {
	switch {
	case option(list, "close"):
		a.Close = true
		if len(list) != len("close") {
			a.Options = true
		}
	case list != "" && !equalKeep(list):
		a.Options = true
	}
}

func equalKeep(s string) bool { return option(s, "keep-alive") && len(s) == len("keep-alive") }
