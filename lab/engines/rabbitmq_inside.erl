%% Evaluated inside a RabbitMQ node at its start: answers the driver's questions about the queue `chat`, by TCP.
%% TYPE is quorum or stream.
%%
%%   running               the number of members of the cluster that have started
%%   status TYPE           LEADER TERM APPLIED, as the local member knows them; LEADER is none without one
%%   read TYPE FIRST LAST  entries of the local member's own log: INDEX SENDER NUMBER BASE64 for a message, else INDEX
%%
%% A quorum queue is a Raft group, and APPLIED the index up to which its local member has applied the log. A stream's
%% leaders are elected by a Raft group of its own, the coordinator. A stream's log consists of chunks of messages, the
%% index is the message's offset plus 1, and APPLIED the index of the first message in the last chunk of which the local
%% member knows that it is committed. What is read goes on to the end of a chunk, even beyond LAST.
spawn(fun() ->
    {ok, Listening} = gen_tcp:listen(
        @PORT@, [binary, {ip, {@IP@}}, {packet, line}, {active, false}, {reuseaddr, true}, {backlog, 64}]),
    Name = '%2F_chat',
    Entry = fun
        ({Index, _, {'$usr', _, {enqueue, Sender, Number, {basic_message, _, _, Content, _, _}}, _}}) ->
            Body = base64:encode(iolist_to_binary(lists:reverse(element(6, Content)))),
            [io_lib:format("~b ~b ~w ", [Index, erlang:phash2(Sender), Number]), Body, $\n];
        ({Index, _, _}) ->
            io_lib:format("~b~n", [Index])
    end,
    Members = fun() ->  % Of the stream, in the coordinator's state: its epoch, and node -> record of the member.
        {ok, {_, State}, _} = ra:local_query({rabbit_stream_coordinator, node()}, fun(Known) -> Known end),
        [Stream] = maps:values(element(2, State)),
        {element(3, Stream), element(7, Stream)}
    end,
    Chunks = fun Chunks(Reader, Last, Found) ->
        case osiris_log:read_chunk_parsed(Reader) of
            {[{Offset, _} | _] = Messages, Next} when Offset + length(Messages) < Last ->
                Chunks(Next, Last, [Messages | Found]);
            {Messages, Next} when is_list(Messages) ->
                {[Messages | Found], Next};
            {end_of_stream, Next} ->
                {Found, Next}
        end
    end,
    Answer = fun
        (["running"]) ->
            io_lib:format("~b~n", [length(lists:filter(fun rabbit:is_running/1, rabbit_mnesia:cluster_nodes(running)))]);
        (["status", "quorum"]) ->
            {ok, {{Applied, Term}, _}, Leader} = ra:local_query({Name, node()}, fun(_) -> ok end),
            io_lib:format("~s ~b ~b~n", [case Leader of {_, Node} -> Node; _ -> none end, Term, Applied]);
        (["read", "quorum", First, Last]) ->
            Reader = ra:register_external_log_reader({Name, node()}),
            {Entries, _, _} = ra_log_reader:read(list_to_integer(First), list_to_integer(Last), Reader),
            lists:map(Entry, lists:keysort(1, Entries));
        (["status", "stream"]) ->
            {Epoch, All} = Members(),
            {running, _, Member} = element(2, maps:get(node(), All)),
            {ok, #{offset_ref := Known, dir := Directory}} = gen:call(Member, '$gen_call', get_reader_context),
            Committed = atomics:get(Known, 1),
            % After a start, the member knows it only once the leader has told it.
            true = Committed >= 0 orelse element(1, osiris_log:overview(Directory)) =:= empty,
            Leaders = [{Node, Since} || {Node, Other} <- maps:to_list(All), {running, Since, _} <- [element(2, Other)],
                element(3, Other) =:= {writer, Since}],
            {Leader, Term} = case Leaders of [Found] -> Found; [] -> {none, Epoch} end,
            io_lib:format("~s ~b ~b~n", [Leader, Term, Committed + 1]);
        (["read", "stream", First, Last]) ->
            {_, All} = Members(),
            {running, _, Member} = element(2, maps:get(node(), All)),
            From = list_to_integer(First) - 1,
            {ok, Reader} = osiris:init_reader(Member, From, {{inside, self()}, []}),
            {Found, AtEnd} = Chunks(Reader, list_to_integer(Last), []),
            osiris_log:close(AtEnd),
            [begin
                {_, Body} = rabbit_msg_record:to_amqp091(rabbit_msg_record:init(Message)),
                io_lib:format("~b 0 undefined ~s~n", [Offset + 1, base64:encode(iolist_to_binary(Body))])
            end || {Offset, Message} <- lists:append(lists:reverse(Found)), Offset >= From]
    end,
    Serve = fun(Socket) ->
        {ok, Line} = gen_tcp:recv(Socket, 0),
        Said = try Answer(string:lexemes(binary_to_list(Line), " \n"))
            catch _:Reason -> io_lib:format("error ~0p~n", [Reason])
        end,
        gen_tcp:send(Socket, [Said, "end\n"]),
        gen_tcp:close(Socket)
    end,
    Loop = fun Loop() ->
        {ok, Socket} = gen_tcp:accept(Listening),
        spawn(fun() -> receive go -> Serve(Socket) end end) ! go,
        Loop()
    end,
    Loop()
end).
