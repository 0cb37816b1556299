package http1

import "strings"

// Request is the head of one.
type Request struct {
	Method string
	Target string // as it came
	Minor  int    // 1 or 0, of HTTP/1.x

	Authority string // of Host, or of a target in absolute form, which must say the same
	Path      string // of the target, as it came
	Query     string // behind the first question mark
	HasQuery  bool   // there is one, with nothing behind it perhaps
	// Plain: the path has nothing that is encoded, or would have to be: it is its own decoded form, and whoever decodes and
	// encodes it gets the same.
	Plain bool

	Fields []Field
	Length int64 // of the body, or Chunked; 0: none

	Close    bool // the client wants no further request on the connection, or cannot have one
	Continue bool // it waits for 100 (Continue)
	Expects  bool // and for what else nobody knows
	Upgrade  bool // it offers another protocol
	Options  bool // Connection names more than close and keep-alive
	Aliases  bool // some name is an Alias

	hosted bool // there is a Host field
}

// Bytes of a target, and those of a path that are their own decoded form.
var target, plain [256]bool

func init() {
	for c := range target {
		target[c] = c > 0x20 && c != 0x7f && c != '#' // more than the RFC has: browsers leave much unencoded in queries
	}
	for c := 'a'; c <= 'z'; c++ {
		plain[c], plain[c-'a'+'A'] = true, true
	}
	for _, c := range "0123456789-._~!$&'()*+,;=:@/" {
		plain[c] = true
	}
}

// Parse reads a whole head, as Scan found it. The fields of an earlier one are overwritten.
func (r *Request) Parse(head string) (err error) {
	*r = Request{Fields: r.Fields[:0]}
	i := 0
	for i < len(head) && token[head[i]] {
		i++
	}
	if i == 0 || i >= len(head) || head[i] != ' ' {
		return ErrRequest
	}
	r.Method, head = head[:i], head[i+1:]
	i, mark := 0, -1
	r.Plain = true
	for i < len(head) && head[i] != ' ' {
		c := head[i]
		if !target[c] {
			return ErrRequest
		}
		if c == '?' && mark < 0 {
			mark = i
		}
		i++
	}
	if i == 0 || len(head)-i < len(" HTTP/1.1\r\n") {
		return ErrRequest
	}
	r.Target = head[:i]
	version := head[i:]
	if version[:6] != " HTTP/" || version[9] != '\r' || version[10] != '\n' {
		return ErrRequest
	}
	if version[6] != '1' || version[7] != '.' {
		return ErrVersion
	}
	switch version[8] {
	case '1':
		r.Minor = 1
	case '0':
		r.Close = true
	default:
		return ErrVersion
	}
	if r.Fields, err = fields(version[11:], r.Fields); err != nil {
		return err
	}
	if err = r.connection(); err != nil {
		return err
	}
	if r.Length, err = framing(r.Fields, r.Minor); err != nil {
		return err
	}
	if r.Length == UntilClose {
		r.Length = 0
	}
	return r.locate(mark)
}

// connection reads the fields that speak of the connection, and Host.
func (r *Request) connection() error {
	hosts := 0
	for i := range r.Fields {
		f := &r.Fields[i]
		switch f.Kind {
		case Host:
			hosts++
			r.Authority = f.Value
		case Connection:
			for list := f.Value; list != ""; {
				var item string
				item, list, _ = strings.Cut(list, ",")
				switch item = strings.Trim(item, " \t"); {
				case strings.EqualFold(item, "close"):
					r.Close = true
				case item != "" && !strings.EqualFold(item, "keep-alive"):
					r.Options = true
				}
			}
		case Upgrade:
			r.Upgrade = true
		case Expect:
			if strings.EqualFold(f.Value, "100-continue") && !r.Expects {
				r.Continue = true
			} else {
				r.Expects = true
			}
		case Other:
			if Alias(f.Name) {
				r.Aliases = true
			}
		}
	}
	if hosts > 1 || hosts == 0 && r.Minor == 1 {
		return ErrHost
	}
	r.hosted = hosts == 1
	return nil
}

// locate takes the target apart; mark is where its query begins.
func (r *Request) locate(mark int) error {
	t := r.Target
	switch {
	case t[0] == '/':
	case r.Method == "CONNECT", t == "*":
		r.Plain = false
		return nil // the proxy refuses both, in words
	default:
		// Absolute form. Whoever goes by the target and whoever goes by Host must mean the same.
		rest, ok := cutFold(t, "http://")
		if !ok {
			if rest, ok = cutFold(t, "https://"); !ok {
				return ErrRequest
			}
		}
		end := strings.IndexAny(rest, "/?")
		if end <= 0 || rest[end] != '/' || strings.IndexByte(rest[:end], '@') >= 0 {
			return ErrRequest
		}
		if r.hosted && !strings.EqualFold(rest[:end], r.Authority) {
			return ErrHost
		}
		r.Authority = rest[:end]
		mark -= len(t) - len(rest) + end
		if t = rest[end:]; mark < 0 {
			mark = -1
		}
	}
	r.split(t, mark)
	return nil
}

// Locate takes a target in origin form, as HTTP/2 has it, or the asterisk. false: it is none.
func (r *Request) Locate(t string) bool {
	mark := -1
	for i := range len(t) {
		if !target[t[i]] {
			return false
		}
		if t[i] == '?' && mark < 0 {
			mark = i
		}
	}
	r.Target = t
	if t == "*" {
		return true
	}
	if t == "" || t[0] != '/' {
		return false
	}
	r.Plain = true
	r.split(t, mark)
	return true
}

func (r *Request) split(t string, mark int) {
	r.Path = t
	if mark >= 0 {
		r.Path, r.Query, r.HasQuery = t[:mark], t[mark+1:], true
	}
	for i := 0; r.Plain && i < len(r.Path); i++ {
		r.Plain = plain[r.Path[i]]
	}
}

func cutFold(s, prefix string) (string, bool) {
	if len(s) < len(prefix) || !strings.EqualFold(s[:len(prefix)], prefix) {
		return s, false
	}
	return s[len(prefix):], true
}
