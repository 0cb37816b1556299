package syncserver

import (
	"context"
	"crypto/rand"
	"time"

	"connectrpc.com/connect"

	syncv1 "bailiwick/proto/gen/bailiwick/sync/v1"
	"bailiwick/shared/fault"
)

// Limits of questions for rows of relays.
const (
	maxQuestions  = 16               // under way at once
	rowsSilence   = 30 * time.Second // an edge that says nothing for so long is given up
	questionsWait = 4                // for one stream to send them
)

// question is one put to an edge, whose answer comes in a call of its own: it may be long, and the policy stream must not
// wait behind it.
type question struct {
	edge string
	told chan *syncv1.TellRowsRequest
	gone context.Context // ends when nobody waits any longer
}

// Connected lists the edges of a region that follow this node now.
func (s *Server) Connected(region string) (names []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, e := range s.edges {
		if e.conn != nil && e.node.Region == region {
			names = append(names, name)
		}
	}
	return names
}

// Rows asks an edge that is connected here for the rows of its relays, and gives its answer to each, piece by piece. It
// returns nil only after the edge has said that this was all.
func (s *Server) Rows(ctx context.Context, edge string, from, to int64, each func(*syncv1.TellRowsRequest) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	id := rand.Text()
	q := &question{edge: edge, told: make(chan *syncv1.TellRowsRequest), gone: ctx}
	if err := s.put(id, q, &syncv1.RowsWanted{Id: id, From: from, To: to}); err != nil {
		return err
	}
	defer func() {
		s.mu.Lock()
		delete(s.questions, id)
		s.mu.Unlock()
	}()
	silence := time.NewTimer(rowsSilence)
	defer silence.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-silence.C:
			return fault.New(fault.Unavailable, "ROWS_SILENT", "edge %s is asked for its rows and says nothing for %v; it may be older than this question", edge, rowsSilence)
		case m := <-q.told:
			silence.Reset(rowsSilence)
			if m.GetFailed() != "" {
				return fault.New(fault.Unavailable, "ROWS_FAILED", "edge %s cannot hand out its rows: %s", edge, m.GetFailed())
			}
			if m.GetDone() {
				return nil
			}
			if err := each(m); err != nil {
				return err
			}
		}
	}
}

func (s *Server) put(id string, q *question, wanted *syncv1.RowsWanted) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.edges[q.edge]
	if e == nil || e.conn == nil {
		return fault.New(fault.Unavailable, "EDGE_AWAY", "edge %s is not connected to this control node", q.edge)
	}
	if len(s.questions) >= maxQuestions {
		return fault.New(fault.Unavailable, "ROWS_BUSY", "%d questions for rows are under way; ask again when one is answered", maxQuestions)
	}
	select {
	case e.conn.ask <- wanted:
	default:
		return fault.New(fault.Unavailable, "ROWS_BUSY", "edge %s has not been sent the last question yet; ask again", q.edge)
	}
	s.questions[id] = q
	return nil
}

// TellRows is part of the service: an edge answers a question that was put to it, and to nobody else.
func (s *Server) TellRows(ctx context.Context, stream *connect.ClientStream[syncv1.TellRowsRequest]) (*syncv1.TellRowsResponse, error) {
	node, _, err := s.peer(ctx)
	if err != nil {
		return nil, err
	}
	var q *question
	for stream.Receive() {
		m := stream.Msg()
		if q == nil {
			s.mu.Lock()
			q = s.questions[m.GetId()]
			s.mu.Unlock()
		}
		if q == nil || q.edge != node {
			return nil, fault.New(fault.Denied, "ROWS_UNASKED", "edge %s was not asked this", node)
		}
		select {
		case q.told <- m:
		case <-q.gone.Done():
			return nil, fault.New(fault.Conflict, "ROWS_UNWANTED", "nobody waits for the rows of edge %s any longer", node)
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if err := stream.Err(); err != nil && q != nil {
		select { // who asked need not wait until the silence is too long
		case q.told <- &syncv1.TellRowsRequest{Failed: "its answer broke off"}:
		case <-q.gone.Done():
		}
		return nil, err
	}
	return &syncv1.TellRowsResponse{}, nil
}
