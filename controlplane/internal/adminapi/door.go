package adminapi

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"buf.build/go/protovalidate"
	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"bailiwick/controlplane/internal/model"
	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
	"bailiwick/shared/fault"
	"bailiwick/shared/fault/rpcfault"
)

// TokenKey is where the operator of a bearer token rests. The token itself is stored nowhere; it is random
// and long, so a plain hash tells nothing, and looking it up by hash leaks no timing that could be steered.
func TokenKey(token string) string {
	sum := sha256.Sum256([]byte(token))
	return model.PrefixOperator + hex.EncodeToString(sum[:])
}

type operatorKey struct{}

// authorise runs before a body byte is decoded, on the dispatched procedure. It reads what this node has
// applied and nothing else: operators are let in while there is no quorum, when they are needed most.
func (s *server) authorise(ctx context.Context, spec connect.Spec, _ connect.Peer, h http.Header) (context.Context, error) {
	ctx = context.WithValue(ctx, reasonKey{}, h.Get(ReasonHeader))
	scheme, token, _ := strings.Cut(h.Get("Authorization"), " ")
	token = strings.TrimSpace(token)
	if !strings.EqualFold(scheme, "Bearer") || token == "" {
		return nil, rpcfault.ToConnect(fault.New(fault.Unauthenticated, "TOKEN_MISSING", "this call needs an operator's token: Authorization: Bearer <token>"))
	}
	if s.SSO != nil && strings.Count(token, ".") == 2 { // an operator's own token has no dots
		name, role, err := s.SSO.Verify(ctx, token)
		if err != nil {
			return nil, rpcfault.ToConnect(err)
		}
		return s.admit(ctx, model.Operator{Name: name, Role: role}, spec.Procedure)
	}
	local := s.Store.Local()
	kv, ok := local.Get(TokenKey(token))
	if !ok && local.Revision().Index == 0 {
		return nil, rpcfault.ToConnect(fault.New(fault.Unavailable, "NODE_NOT_CAUGHT_UP", "control node %s has not heard from zone %s yet and knows no operator: ask another node, or again", s.Node, s.Zone))
	}
	if !ok {
		return nil, rpcfault.ToConnect(fault.New(fault.Unauthenticated, "TOKEN_UNKNOWN", "zone %s does not know this operator's token", s.Zone))
	}
	op, err := model.Decode[model.Operator](model.PrefixOperator+"…", kv.Value)
	if err != nil {
		s.Logger.ErrorContext(ctx, "operator record unreadable", "err", err)
		return nil, rpcfault.ToConnect(err)
	}
	if !op.Expires.IsZero() && !time.Now().Before(op.Expires) {
		return nil, rpcfault.ToConnect(fault.New(fault.Unauthenticated, "TOKEN_EXPIRED", "this token of operator %s ended at %s: an admin makes another with bailiwick operator create", op.Name, op.Expires.Format(time.RFC3339)))
	}
	return s.admit(ctx, op, spec.Procedure)
}

func (s *server) admit(ctx context.Context, op model.Operator, procedure string) (context.Context, error) {
	if err := s.meter.take(op.Name, time.Now()); err != nil {
		return nil, rpcfault.ToConnect(err)
	}
	if allowed(op.Role, rights[procedure]) {
		return context.WithValue(ctx, operatorKey{}, op), nil
	}
	return nil, rpcfault.ToConnect(fault.New(fault.Denied, "ROLE_INSUFFICIENT", "role %q may not call %s", op.Role, procedure))
}

// requests are compiled at start, so that no rule can fail to compile on a call.
func requests() []proto.Message {
	return []proto.Message{&adminv1.ApplyRequest{}, &adminv1.GetRequest{}, &adminv1.ListRequest{}, &adminv1.DeleteRequest{},
		&adminv1.HistoryRequest{}, &adminv1.CompareRequest{}, &adminv1.RollbackRequest{},
		&adminv1.CreateKeyRequest{}, &adminv1.CreateKeysRequest{}, &adminv1.RevokeKeyRequest{}, &adminv1.RotateKeyRequest{}, &adminv1.UndoRotationRequest{}, &adminv1.DescribeRequest{}, &adminv1.ListKeysRequest{}, &adminv1.RemoveNodeRequest{}, &adminv1.CreateOperatorRequest{}, &adminv1.RemoveOperatorRequest{}, &adminv1.ApproveRequest{}, &adminv1.RejectRequest{}, &adminv1.SteerRolloutRequest{}, &adminv1.OpenCrossingsRequest{}, &adminv1.ExplainDNSRequest{}, &adminv1.SimulateRequest{},
		&adminv1.CreateJoinTokenRequest{}, &adminv1.QueryUsageRequest{}, &adminv1.QueryTotalsRequest{},
		&adminv1.QueryLatencyRequest{}, &adminv1.ForecastRequest{}, &adminv1.CreateWebhookRequest{}, &adminv1.ListWebhooksRequest{}, &adminv1.DeleteWebhookRequest{}, &adminv1.RotateWebhookSecretRequest{}, &adminv1.ListAlertsRequest{},
		&adminv1.ListMembersRequest{}, &adminv1.TransferLeadershipRequest{}, &adminv1.BackupRequest{}, &adminv1.ClaimsRequest{}, &adminv1.ReleaseClaimRequest{},
		&adminv1.ListEpochsRequest{}, &adminv1.CloseEpochRequest{},
		&adminv1.GetQuotasRequest{}, &adminv1.TopUpRequest{},
		&adminv1.CorrectRequest{}, &adminv1.UndoCorrectionRequest{}, &adminv1.ListCorrectionsRequest{},
		&adminv1.TraceUsageRequest{}, &adminv1.EraseRequest{}, &adminv1.ExportRequest{}, &adminv1.ExportEvidenceRequest{}}
}

// validation checks requests against the rules written in the proto files.
type validation struct{ protovalidate.Validator }

func (v validation) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		if msg, ok := req.Any().(proto.Message); ok {
			if apply, ok := msg.(*adminv1.ApplyRequest); ok && len(apply.GetUpdateMask()) > 0 {
				return next(ctx, req) // a part of a document: Apply has it checked when it is whole
			}
			if err := v.check(msg); err != nil {
				return nil, err
			}
		}
		return next(ctx, req)
	}
}

func (validation) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

func (validation) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return next // the one stream, Export, checks its only field itself
}

func (v validation) check(msg proto.Message) error {
	err := v.Validate(msg)
	if err == nil {
		return nil
	}
	ve, ok := errors.AsType[*protovalidate.ValidationError](err)
	if !ok || len(ve.Violations) == 0 {
		return fmt.Errorf("validate request: %w", err)
	}
	var first string
	var texts []string
	for i, violation := range ve.Violations {
		if i == 10 {
			texts = append(texts, fmt.Sprintf("and %d more", len(ve.Violations)-i))
			break
		}
		field := specPath(protovalidate.FieldPathString(violation.Proto.GetField()))
		if i == 0 {
			first = field
		}
		why := violation.Proto.GetMessage()
		if words := forms[patternOf(violation)]; words != "" {
			why = words
		}
		if why == "" {
			why = "breaks rule " + violation.Proto.GetRuleId()
		}
		texts = append(texts, field+": "+plainly(why))
	}
	return fault.New(fault.Invalid, "FIELD_INVALID", "%s", strings.Join(texts, "; ")).At(first)
}

// forms are the patterns of the proto files in words: a regular expression is no answer to a person.
var forms = map[string]string{
	`^[a-z][a-z0-9-]{0,31}$`:    "write a small letter, then up to 31 of a-z, 0-9 and -",
	`^[a-z][a-z0-9-]{0,62}$`:    "write a small letter, then up to 62 of a-z, 0-9 and -",
	`^[a-z][a-z0-9.-]{0,62}$`:   "write a small letter, then up to 62 of a-z, 0-9, . and -",
	`^[a-z][a-z0-9._@-]{0,62}$`: "write a small letter, then up to 62 of a-z, 0-9 and ._@-",
	`^[0-9a-f]{16}$`:            "write 16 hexadecimal digits, letters small",
	`^([0-9a-f]{64})?$`:         "write 64 hexadecimal digits, letters small",
	`^(/[^?#]*)?$`:              "begin it with /, and leave ? and # out",
	`^[A-Z]{1,16}$`:             "write 1 to 16 capital letters",
}

// patternOf is the pattern that a text does not have; "": it breaks another rule.
func patternOf(v *protovalidate.Violation) string {
	if v.Proto.GetRuleId() != "string.pattern" || !v.RuleValue.IsValid() {
		return ""
	}
	text, _ := v.RuleValue.Interface().(string)
	return text
}

// plainly takes the empty text, which stands for the default, out of a rule's list.
func plainly(why string) string {
	return strings.Replace(why, "must be in list [, ", "must be in list [", 1)
}

// specPath turns resources[0].api.routes[1].name into the manifest's resources[0].spec.routes[1].name.
func specPath(path string) string {
	head, rest, ok := strings.Cut(path, "].")
	if !ok || !strings.HasPrefix(head, "resources[") {
		return path
	}
	kind, tail, deeper := strings.Cut(rest, ".")
	if f := resourceFields.ByName(protoreflect.Name(kind)); f == nil || f.ContainingOneof() == nil {
		return path
	}
	if deeper {
		return head + "].spec." + tail
	}
	return head + "].spec"
}

var resourceFields = (&adminv1.Resource{}).ProtoReflect().Descriptor().Fields()

// jsonCodec speaks the field names of the proto files and of manifests, with unset fields written, so that
// what curl shows is what may be sent. An unknown field is refused: a misspelt one must not be dropped.
type jsonCodec struct{ name string }

func (c jsonCodec) Name() string { return c.name }

func (jsonCodec) Marshal(v any) ([]byte, error) {
	m, ok := v.(proto.Message)
	if !ok {
		return nil, fmt.Errorf("marshal %T: not a message", v)
	}
	return protojson.MarshalOptions{UseProtoNames: true, EmitUnpopulated: true}.Marshal(m)
}

func (jsonCodec) Unmarshal(data []byte, v any) error {
	m, ok := v.(proto.Message)
	if !ok {
		return fmt.Errorf("unmarshal %T: not a message", v)
	}
	if len(data) == 0 {
		return errors.New("an empty body is not a JSON object: send {}")
	}
	return protojson.Unmarshal(data, m)
}

// IsBinary lets Connect put messages into the query of a GET as text.
func (jsonCodec) IsBinary() bool { return false }

// MarshalStable is what Connect asks of a codec for GET requests.
func (c jsonCodec) MarshalStable(v any) ([]byte, error) { return c.Marshal(v) }
